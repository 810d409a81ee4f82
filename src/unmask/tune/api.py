"""`unmask.tune`: a search of a decoder's knobs from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError
from unmask.evals.api import settings_from
from unmask.evals.settings import EvalSettings
from unmask.progress import CallProgress, ProgressLike
from unmask.tune import outcome
from unmask.tune.goal import parse_constraint, parse_objectives
from unmask.tune.measure import Bench
from unmask.tune.outcome import HeldOut
from unmask.tune.reference import (
    METRIC,
    check_alone,
    parse_prompts,
    shared_prompts,
    with_reference,
)
from unmask.tune.space import parse_changes, space_of
from unmask.tune.study import SearchResult, StudyPlan, TrialPoint, run

if TYPE_CHECKING:
    from unmask.engine.knob_types import CacheName, DecoderName
    from unmask.engine.llm import LLM
    from unmask.own_code import Reference

DEFAULT_OBJECTIVES = ("tokens_per_forward",)
DEFAULT_CONSTRAINTS = ("accuracy>=0.99*baseline",)


@dataclass(frozen=True)
class Tuned:
    """A finished search: its points, the comparison on held-out prompts, and the files written.

    `held_out` is None without a feasible point or without held-out prompts. `preset`: a file for
    `generation=` of `unmask eval`, None without a feasible point.
    """

    result: SearchResult
    held_out: HeldOut | None
    files: tuple[Path, ...]

    @property
    def knobs(self) -> dict[str, object] | None:
        """Knobs of the best point, for `generate`; None if no point satisfies the constraints."""
        best = self.result.best
        return None if best is None else dict(best.knobs)

    @property
    def preset(self) -> Path | None:
        """File with the best point's knobs."""
        return next((path for path in self.files if path.name == outcome.PRESET), None)


def tune(  # noqa: PLR0913 - the call's options are the interface
    decoder: DecoderName | Reference,
    model: str | Path | LLM = "demo",
    cache: CacheName | Reference = "none",
    *,
    task: str | None = None,
    space: Mapping[str, str] | None = None,
    objectives: Sequence[str] = DEFAULT_OBJECTIVES,
    constraints: Sequence[str] = DEFAULT_CONSTRAINTS,
    trials: int = 40,
    prompts: int | str | Path | None = None,
    num_prompts: int | None = None,
    held_out: int | None = None,
    progress: ProgressLike = None,
    **options: object,
) -> Tuned:
    """Search a decoder's knobs for speed without loss of quality, as `unmask tune` does.

    `prompts` of `task` (default: word_problem) are searched on: a number, or a file of rows with prompts
    alone, of which `num_prompts` are, and an answer is right if it is that of the decoder's defaults. The
    defaults are measured in the same run; the best point is compared with them on `held_out` further
    prompts (0: not). Numbers default to 100 and 200, or fewer of a file with fewer rows. `space` has
    ranges by knob: "0.5:0.99", "8,16,32", or "off" for its default; `options` are fields of `EvalSettings`
    and knobs that stay fixed. The folder `output` (default: runs/tune/TASK-MODEL-DECODER) holds the study,
    which a repeated call continues.
    Raises ConfigError, ModelError and DependencyError (extras `eval` and `tune`).
    """
    name = str(model) if isinstance(model, str | Path) else model.name
    found = parse_prompts(prompts)
    task, options = _task_of(found, num_prompts, task, options)
    output = f"runs/tune/{Path(task).stem}-{Path(name).name}-{decoder}"
    settings = settings_from(task, name, decoder, cache, {"output": output, **options})
    file, shares = shared_prompts(settings, found, num_prompts, held_out)
    changes = parse_changes([f"{knob}={text}" for knob, text in (space or {}).items()])
    plan = StudyPlan(
        space=space_of(decoder, changes, tuple(settings.method.given)),
        objectives=parse_objectives(objectives),
        constraints=tuple(parse_constraint(text) for text in constraints),
        num_prompts=shares.searched,
        num_trials=trials,
        seed=settings.seed,
    )
    llm = _loaded(model, settings)
    with CallProgress(progress, f"tuning {decoder}", "points") as report:
        numbers: set[int] = set()

        def done(point: TrialPoint) -> None:
            numbers.add(point.number)
            report(len(numbers), max(trials, len(numbers)))

        if file is not None:
            settings = with_reference(llm, settings, file, shares.total, lambda *_: None)
        bench = Bench(llm, settings, settings.folder)
        result = run(bench, plan, lambda *_: None, done)
        compared = outcome.check(bench, result, shares.held_out, lambda *_: None)
    asked = f"task={task!r}" if file is None else f"prompts={str(file.path)!r}"
    command = f"unmask.tune({decoder!r}, {name!r}, {asked}, trials={trials})"
    files = outcome.write(bench, result, compared, command, bench.folder)
    return Tuned(result, compared, tuple(files))


def _task_of(
    prompts: int | Path | None,
    num_prompts: int | None,
    task: str | None,
    options: dict[str, object],
) -> tuple[str, dict[str, object]]:
    """Return the task of a call, and its options, with a metric for prompts alone. Raises ConfigError."""
    for name in ("limit", "offset"):
        if name in options:
            raise ConfigError(f"{name} has no effect here; use prompts and held_out")
    if not isinstance(prompts, Path):
        if num_prompts is not None:
            raise ConfigError(f"num_prompts={num_prompts} is for a file of prompts; use prompts")
        return task or "word_problem", options
    check_alone(prompts, {"task": task, **options}, "")
    return str(prompts), {**options, "metric": METRIC}


def _loaded(model: str | Path | LLM, settings: EvalSettings) -> LLM:
    if not isinstance(model, str | Path):
        return model
    from unmask.engine.llm import LLM

    return LLM(model, dtype=settings.dtype, device=settings.device)
