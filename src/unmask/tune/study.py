"""Search with Optuna, which proposes points that are measured on growing parts of the prompts.

Sampler: TPE (arXiv:2304.11127) with constraint violations, seeded by the seed and the number of the point,
so that a resumed study draws the same points as an uninterrupted one. A point is stopped after a part of
the prompts when it can no longer reach the required accuracy (its Wilson interval of two standard errors
lies below), or when a feasible point had at least its score on the same prompts and is clearly better in
every other objective. Stopped points inform the sampler as well; the front has only points measured on all
prompts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unmask.durable import FolderLock
from unmask.errors import ConfigError, DependencyError
from unmask.tune.goal import ACCURACY, IS_MORE_BETTER, Constraint, front, wilson
from unmask.tune.measure import Bench, Measurement
from unmask.tune.space import Space, start_of, suggest

if TYPE_CHECKING:
    import optuna

PARTS = (0.25, 0.5, 1.0)
CLEARLY = 1.05
"""Factor by which another point must be better for a point to be stopped."""
MAX_FAILURES = 20
STUDY = "study.db"
POINT, REPEATS = "point", "repeats"
"""Attributes of a trial: its measured point, and the number of the interrupted trial that it repeats."""


@dataclass(frozen=True)
class StudyPlan:
    """Goal and extent of a search: prompts per point, and total number of points."""

    space: Space
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    num_prompts: int
    num_trials: int
    seed: int = 0

    def parts(self) -> list[int]:
        """Return the numbers of prompts after which a point may be stopped, and finally all of them."""
        counts = sorted({max(1, round(share * self.num_prompts)) for share in PARTS})
        return [count for count in counts if count >= min(8, self.num_prompts)]

    def identity(self) -> dict[str, object]:
        """Return the values that must be equal to resume a study."""
        return {
            "space": {name: str(part) for name, part in self.space.items()},
            "objectives": list(self.objectives),
            "constraints": [str(item) for item in self.constraints],
            "num_prompts": self.num_prompts,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Trial:
    """Sum of the scores and metrics on the first `num_prompts` prompts."""

    num_prompts: int
    right: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialPoint:
    """A point of the search, measured in parts.

    `is_feasible`: it satisfies the constraints. `given_up`: why it was stopped early; empty if it was not.
    """

    number: int
    knobs: dict[str, object]
    parts: tuple[Trial, ...]
    is_feasible: bool
    given_up: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on all prompts measured."""
        return self.parts[-1].metrics

    @property
    def num_prompts(self) -> int:
        """Number of prompts measured."""
        return self.parts[-1].num_prompts

    @classmethod
    def read(cls, text: str) -> TrialPoint:
        """Parse the JSON of `dataclasses.asdict(point)`."""
        record = json.loads(text)
        record["parts"] = tuple(Trial(**part) for part in record["parts"])
        return cls(**record)


@dataclass(frozen=True)
class SearchResult:
    """A finished search. `baseline`: the decoder's own defaults, measured in the same run."""

    plan: StudyPlan
    baseline: Measurement
    points: tuple[TrialPoint, ...]

    @property
    def complete(self) -> list[TrialPoint]:
        """Points measured on all prompts."""
        return [point for point in self.points if not point.given_up]

    @property
    def front(self) -> list[TrialPoint]:
        """Pareto front of the complete feasible points."""
        feasible = [point for point in self.complete if point.is_feasible]
        indices = front([point.metrics for point in feasible], self.plan.objectives)
        return [feasible[index] for index in indices]

    @property
    def best(self) -> TrialPoint | None:
        """Point of the front that is best in the first objective; None if no point is feasible."""
        name = self.plan.objectives[0]
        sign = 1 if IS_MORE_BETTER[name] else -1
        return max(self.front, key=lambda point: sign * point.metrics[name], default=None)


Watch = Callable[[str, int, int], None]
"""Callback with the label of a point, the number of answered prompts, and the total."""
Done = Callable[[TrialPoint], None]


def run(
    bench: Bench, plan: StudyPlan, watch: Watch, done: Done = lambda point: None
) -> SearchResult:
    """Run the search, resuming a study in the folder of the bench.

    Raises ConfigError when the folder has another study, and DependencyError (extra `tune`).
    """
    with FolderLock(bench.folder, "search"):
        study = open_study(bench, plan)
        watch("warm-up", 0, 1)
        bench.measure({}, 0, 1, lambda count, total: None)
        search = _Search(bench, plan, study, watch)
        while len(search.points) < plan.num_trials:
            done(search.step())
    return SearchResult(plan, search.baseline, tuple(search.points))


def open_study(bench: Bench, plan: StudyPlan) -> optuna.Study:
    """Open the study of a folder, or create it."""
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise DependencyError(
            "tuning needs optuna, which is not installed; pip install 'unmask[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = (bench.folder / STUDY).absolute()
    identity = {"settings": bench.settings.identity(), **plan.identity()}
    text = json.dumps(identity, sort_keys=True, default=str)
    directions = [_direction(name) for name in plan.objectives]
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}",
            study_name="tune",
            directions=directions,
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise ConfigError(
            f"{path} cannot be read: {str(error).splitlines()[0][:200]}; delete it to search anew (the "
            f"answers in the folder are kept), or use another --output"
        ) from None
    before = study.user_attrs.get("identity", text)
    if before != text:
        differ = [
            key for key, value in json.loads(before).items() if value != json.loads(text)[key]
        ]
        raise ConfigError(
            f"{str(bench.folder)!r} holds a study with other {', '.join(differ)}; use another --output, or "
            f"the settings of that study"
        )
    study.set_user_attr("identity", text)
    if not study.get_trials(deepcopy=False):
        start = start_of(plan.space, bench.settings.method.decoder_name)
        if start is not None:
            study.enqueue_trial(start)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if POINT in trial.user_attrs:  # measured, and interrupted before it was told
            point = TrialPoint.read(trial.user_attrs[POINT])
            study.tell(trial.number, [point.metrics[name] for name in plan.objectives])
            continue
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
    return study


def num_drawn(study: optuna.Study) -> int:
    """Return the number of finished draws; a point that was interrupted and is repeated counts once."""
    trials = study.get_trials(deepcopy=False)
    return sum(t.state.is_finished() for t in trials) - sum(REPEATS in t.user_attrs for t in trials)


def _direction(name: str) -> Literal["maximize", "minimize"]:
    return "maximize" if IS_MORE_BETTER[name] else "minimize"


class _Search:
    def __init__(self, bench: Bench, plan: StudyPlan, study: optuna.Study, watch: Watch) -> None:
        import optuna

        self.bench, self.plan, self.study, self.watch = bench, plan, study, watch
        self.baseline = self._measure("defaults", {}, plan.num_prompts)
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        self.points = [TrialPoint.read(trial.user_attrs[POINT]) for trial in done]

    def _measure(self, label: str, knobs: dict[str, object], count: int) -> Measurement:
        def progress(done: int, total: int) -> None:
            self.watch(label, done, self.plan.num_prompts)

        return self.bench.measure(knobs, 0, count, progress)

    def step(self) -> TrialPoint:
        """Draw a point and measure it. Raises ConfigError when too many points in a row are refused."""
        import optuna

        for failure in range(MAX_FAILURES):
            number = num_drawn(self.study)
            self.study.sampler = _sampler(self.plan, number, after_failure=failure > 0)
            trial = self.study.ask()
            try:
                point = self._measure_point(trial.number, suggest(trial, self.plan.space))
            except ConfigError:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                if failure == MAX_FAILURES - 1:
                    raise
                continue
            self.points.append(point)
            for item, excess in zip(
                self.plan.constraints, self._excess(point.metrics), strict=True
            ):
                trial.set_constraint(str(item), excess)
            trial.set_user_attr(POINT, json.dumps(dataclasses.asdict(point)))
            self.study.tell(trial, [point.metrics[name] for name in self.plan.objectives])
            return point
        raise AssertionError("the last failure raises")

    def _measure_point(self, number: int, knobs: dict[str, object]) -> TrialPoint:
        """Measure growing parts up to all prompts, or until the point is stopped."""
        counts = self.plan.parts()
        parts: list[Trial] = []
        reason = ""
        for count in counts:
            measurement = self._measure(f"point {number}", knobs, count)
            metrics = {name: measurement.metrics[name] for name in IS_MORE_BETTER}
            parts.append(Trial(count, measurement.first(count), metrics))
            if count < counts[-1]:
                reason = self._stop_reason(parts[-1])
            if reason:
                break
        is_feasible = all(value <= 0 for value in self._excess(parts[-1].metrics))
        return TrialPoint(number, knobs, tuple(parts), is_feasible, reason)

    def _excess(self, metrics: Mapping[str, float]) -> list[float]:
        base = self.baseline.metrics
        return [item.excess(metrics[item.metric], base) for item in self.plan.constraints]

    def _stop_reason(self, part: Trial) -> str:
        """Return why a point is stopped after a part; empty to continue."""
        count = part.num_prompts
        _, upper = wilson(part.right, count)
        for item in self.plan.constraints:
            if item.metric == ACCURACY and item.is_lower:
                limit = item.limit(self.baseline.metrics)
                if upper < limit:
                    return (
                        f"accuracy at most {upper:.3f} after {count} prompts, required {limit:.3f}"
                    )
        for point in (point for point in self.points if point.is_feasible and not point.given_up):
            for other in point.parts:
                same = other.num_prompts == count and other.right >= part.right
                if same and self._is_clearly_worse(part.metrics, other.metrics):
                    return f"worse than point {point.number} after {count} prompts"
        return ""

    def _is_clearly_worse(self, own: Mapping[str, float], other: Mapping[str, float]) -> bool:
        names = [name for name in self.plan.objectives if name != ACCURACY]
        return bool(names) and all(
            other[name] >= CLEARLY * own[name]
            if IS_MORE_BETTER[name]
            else own[name] >= CLEARLY * other[name]
            for name in names
        )


def _sampler(plan: StudyPlan, number: int, after_failure: bool) -> optuna.samplers.BaseSampler:
    """Return the sampler of one draw: TPE, or uniform after a refused point, which TPE cannot learn."""
    import warnings

    import optuna

    seed = (plan.seed * 1_000_003 + number) % 2**32
    if after_failure:
        return optuna.samplers.RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=min(10, max(4, plan.num_trials // 4)),
            multivariate=True,
        )
