"""`unmask.tune`: a search of a decoder's knobs from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    task: str = "word_problem",
    space: Mapping[str, str] | None = None,
    objectives: Sequence[str] = DEFAULT_OBJECTIVES,
    constraints: Sequence[str] = DEFAULT_CONSTRAINTS,
    trials: int = 40,
    prompts: int = 100,
    held_out: int = 200,
    progress: ProgressLike = None,
    **options: object,
) -> Tuned:
    """Search a decoder's knobs for speed without loss of quality, as `unmask tune` does.

    The decoder's published defaults are measured in the same run; the best point is compared with them on
    `held_out` further prompts (0: not). `space` has ranges by knob: "0.5:0.99", "8,16,32", or "off" for its
    default; `options` are the fields of `EvalSettings` and knobs that stay fixed. The folder `output`
    (default: runs/tune/TASK-MODEL-DECODER) holds the study, which a repeated call continues.
    Raises ConfigError, ModelError and DependencyError (extras `eval` and `tune`).
    """
    settings, plan = _planned(
        decoder,
        str(model) if isinstance(model, str | Path) else model.name,
        cache,
        {"task": task, **options},
        StudyPlan(
            space={},
            objectives=parse_objectives(objectives),
            constraints=tuple(parse_constraint(text) for text in constraints),
            num_prompts=prompts,
            num_trials=trials,
        ),
        [f"{name}={text}" for name, text in (space or {}).items()],
    )
    bench = Bench(_loaded(model, settings), settings, settings.folder)
    with CallProgress(progress, f"tuning {decoder}", "points") as report:
        numbers: set[int] = set()

        def done(point: TrialPoint) -> None:
            numbers.add(point.number)
            report(len(numbers), max(trials, len(numbers)))

        result = run(bench, plan, lambda *_: None, done)
        compared = outcome.check(bench, result, held_out, lambda *_: None)
    command = f"unmask.tune({decoder!r}, {settings.model!r}, task={task!r}, trials={trials})"
    files = outcome.write(bench, result, compared, command, bench.folder)
    return Tuned(result, compared, tuple(files))


def _planned(
    decoder: str,
    model: str,
    cache: str,
    options: dict[str, object],
    plan: StudyPlan,
    changes: Sequence[str],
) -> tuple[EvalSettings, StudyPlan]:
    """Return the settings that every point shares, and the plan with its space. Raises ConfigError."""
    for name in ("limit", "offset"):
        if name in options:
            raise ConfigError(f"{name} has no effect here; use prompts and held_out")
    task = str(options.pop("task"))
    output = f"runs/tune/{Path(task).stem}-{Path(model).name}-{decoder}"
    settings = settings_from(task, model, decoder, cache, {"output": output, **options})
    space = space_of(decoder, parse_changes(changes), tuple(settings.method.given))
    return settings, replace(plan, space=space, seed=settings.seed)


def _loaded(model: str | Path | LLM, settings: EvalSettings) -> LLM:
    if not isinstance(model, str | Path):
        return model
    from unmask.engine.llm import LLM

    return LLM(model, dtype=settings.dtype, device=settings.device)
