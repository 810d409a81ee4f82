"""`unmask.evaluate` and `unmask.report`: evaluations from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError
from unmask.evals.results import EvalRun, Results, read_runs
from unmask.evals.results import report as report_of
from unmask.evals.run import evaluate as run_task
from unmask.evals.settings import EvalSettings
from unmask.method import MethodSpec, Source
from unmask.progress import CallProgress, ProgressLike

if TYPE_CHECKING:
    from unmask.engine.knob_types import CacheName, DecoderName
    from unmask.engine.llm import LLM
    from unmask.own_code import Reference


def evaluate(
    task: str,
    model: str | Path | LLM = "demo",
    decoder: DecoderName | Reference = "vanilla",
    cache: CacheName | Reference = "none",
    *,
    progress: ProgressLike = None,
    **options: object,
) -> Results:
    """Evaluate a task and return the results, as `unmask eval` does; the run is in the folder `output`.

    `task`: a name of docs/reference/tasks.md, or a file of your own. `model`: a loaded `LLM`, or its name,
    folder or hub id. `options` are the fields of `EvalSettings` (limit, gen_length, batch_size, output,
    seed, ...) and the knobs of decoder and cache. `output` defaults to
    runs/eval/TASK-MODEL-DECODER-CODE, the same folder for the same settings: repeating the call resumes.
    Raises ConfigError, ModelError, PromptError and DependencyError (extra `eval`).
    """
    name, llm = (str(model), None) if isinstance(model, str | Path) else (model.name, model)
    settings = settings_from(task, name, decoder, cache, options)
    with CallProgress(progress, f"{settings.task_name} {decoder}", "answers") as report:
        return run_task(settings, report, llm)


def settings_from(
    task: str, model: str, decoder: str, cache: str, options: dict[str, object]
) -> EvalSettings:
    """Return the settings of a call: options that are no field of `EvalSettings` are knobs."""
    import dataclasses

    names = {item.name for item in fields(EvalSettings)} - {"task", "model", "method"}
    own = {name: value for name, value in options.items() if name in names}
    knobs = {name: value for name, value in options.items() if name not in names}
    method = MethodSpec.parse(
        Source({"decoder": decoder, "cache": cache, **knobs}), is_trusted=True
    )
    for key in ("output",):
        if isinstance(own.get(key), Path):
            own[key] = str(own[key])
    settings = EvalSettings.from_dict({"task": task, "model": model, **own})
    settings = dataclasses.replace(settings, method=method)
    if "output" in own:
        return settings
    parts = (settings.task_name, Path(model).name, method.decoder_name, settings.fingerprint())
    return dataclasses.replace(settings, output="runs/eval/" + "-".join(parts))


def report(runs: str | Path | Results | Sequence[str | Path | Results]) -> str:
    """Return the table that compares runs, in Markdown: run folders, or results of `evaluate`.

    Raises ConfigError for no runs, and for folders without results.
    """
    items = [runs] if isinstance(runs, str | Path | Results) else list(runs)
    if not items:
        raise ConfigError("no runs; give at least one run folder, or results of unmask.evaluate")
    loaded: list[EvalRun] = []
    for item in items:
        folder = str(item.settings["output"]) if isinstance(item, Results) else item
        loaded += read_runs([folder])
    return report_of(loaded)
