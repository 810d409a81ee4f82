"""The search: Optuna proposes points, each is measured in growing parts; a stopped study goes on.

Sampler: TPE (arXiv:2304.11127), told how far constraints are missed, seeded by the seed and the point's
number, so that a study that was stopped draws what it would have drawn. A point is given up after a part of
the prompts when it cannot keep to the accuracy that is asked any more (its Wilson interval of two standard
errors is below), or when one that keeps to everything was at least as right on the same prompts and clearly
better in every objective. What it got so far still tells the sampler; the front has only points that saw
all prompts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unmask.errors import ConfigError, DependencyError
from unmask.tune.goal import ACCURACY, IS_MORE_BETTER, Constraint, front, wilson
from unmask.tune.measure import Bench, Measured
from unmask.tune.space import Space, start_of, suggest

if TYPE_CHECKING:
    import optuna

PARTS = (0.25, 0.5, 1.0)
CLEARLY = 1.05
"""Factor by which another point must be better to give a point up."""
MOST_FAILURES = 20
STUDY = "study.db"


@dataclass(frozen=True)
class StudyPlan:
    """What is searched for, and how long: `num_prompts` a point, `num_trials` points in all."""

    space: Space
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    num_prompts: int
    num_trials: int
    seed: int = 0

    def parts(self) -> list[int]:
        """Numbers of prompts after which a point is looked at; the last is all of them."""
        found = sorted({max(1, round(share * self.num_prompts)) for share in PARTS})
        return [count for count in found if count >= min(8, self.num_prompts)]

    def identity(self) -> dict[str, Any]:
        """What a study that goes on must agree on."""
        return {
            "space": {name: str(part) for name, part in self.space.items()},
            "objectives": list(self.objectives),
            "constraints": [str(item) for item in self.constraints],
            "num_prompts": self.num_prompts,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Trial:
    """What the first `num_prompts` prompts gave: the scores' sum, and the metrics."""

    num_prompts: int
    right: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialPoint:
    """A point of the search: its number, knobs, what each part gave, and why it was given up, if it was.

    `is_feasible`: whether it keeps to the constraints.
    """

    number: int
    knobs: dict[str, Any]
    parts: tuple[Trial, ...]
    is_feasible: bool
    given_up: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on all the prompts that it saw."""
        return self.parts[-1].metrics

    @property
    def num_prompts(self) -> int:
        """How many prompts it saw."""
        return self.parts[-1].num_prompts

    @classmethod
    def read(cls, text: str) -> TrialPoint:
        """A point that `json.dumps(dataclasses.asdict(point))` wrote."""
        found = json.loads(text)
        found["parts"] = tuple(Trial(**part) for part in found["parts"])
        return cls(**found)


@dataclass(frozen=True)
class SearchResult:
    """A finished search. `baseline`: the decoder's own defaults, measured in the same run."""

    plan: StudyPlan
    baseline: Measured
    points: tuple[TrialPoint, ...]

    @property
    def complete(self) -> list[TrialPoint]:
        """Points that saw all prompts."""
        return [point for point in self.points if not point.given_up]

    @property
    def front(self) -> list[TrialPoint]:
        """Complete feasible points that no other beats."""
        able = [point for point in self.complete if point.is_feasible]
        chosen = front([point.metrics for point in able], self.plan.objectives)
        return [able[index] for index in chosen]

    @property
    def best(self) -> TrialPoint | None:
        """Of the front, the best in the first objective; None when no point keeps to the constraints."""
        name = self.plan.objectives[0]
        sign = 1 if IS_MORE_BETTER[name] else -1
        return max(self.front, key=lambda point: sign * point.metrics[name], default=None)


Watch = Callable[[str, int, int], None]
"""Told a point's label and how many of its prompts are answered."""
Done = Callable[[TrialPoint], None]


def run(
    bench: Bench, plan: StudyPlan, watch: Watch, done: Done = lambda point: None
) -> SearchResult:
    """Search, or go on with the study in the bench's folder.

    Raises ConfigError when the folder holds another study, and DependencyError (extra `tune`).
    """
    study = open_study(bench, plan)
    watch("warm-up", 0, 1)
    bench.measure({}, 0, 1, lambda count, total: None)
    search = _Search(bench, plan, study, watch)
    while len(search.points) < plan.num_trials:
        done(search.step())
    return SearchResult(plan, search.baseline, tuple(search.points))


def open_study(bench: Bench, plan: StudyPlan) -> optuna.Study:
    """The study of a folder, new or as it was left."""
    try:
        import optuna
    except ImportError:
        raise DependencyError(
            "tuning needs optuna, which is not installed; pip install 'unmask[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench.folder.mkdir(parents=True, exist_ok=True)
    path = (bench.folder / STUDY).absolute()
    same = {"settings": bench.settings.identity(), **plan.identity()}
    told = json.dumps(same, sort_keys=True, default=str)
    directions = [_direction(name) for name in plan.objectives]
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="tune", directions=directions, load_if_exists=True
    )
    before = study.user_attrs.get("identity", told)
    if before != told:
        differ = [
            key for key, value in json.loads(before).items() if value != json.loads(told)[key]
        ]
        raise ConfigError(
            f"{str(bench.folder)!r} holds a study with other {', '.join(differ)}; use another --output, or "
            f"the words of then"
        )
    study.set_user_attr("identity", told)
    if not study.get_trials(deepcopy=False):
        start = start_of(plan.space, bench.settings.method.decoder_name)
        if start is not None:
            study.enqueue_trial(start)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _direction(name: str) -> Literal["maximize", "minimize"]:
    return "maximize" if IS_MORE_BETTER[name] else "minimize"


class _Search:
    """A study at work."""

    def __init__(self, bench: Bench, plan: StudyPlan, study: optuna.Study, watch: Watch) -> None:
        import optuna

        self.bench, self.plan, self.study, self.watch = bench, plan, study, watch
        self.baseline = self._measure("defaults", {}, plan.num_prompts)
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        self.points = [TrialPoint.read(trial.user_attrs["point"]) for trial in done]

    def _measure(self, label: str, knobs: dict[str, Any], count: int) -> Measured:
        def told(done: int, total: int) -> None:
            self.watch(label, done, self.plan.num_prompts)

        return self.bench.measure(knobs, 0, count, told)

    def step(self) -> TrialPoint:
        """Draw a point and measure it. Raises ConfigError when hardly any knobs of the space fit."""
        import optuna

        for failure in range(MOST_FAILURES):
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = _sampler(self.plan, number, after_failure=failure > 0)
            trial = self.study.ask()
            try:
                point = self._climb(trial.number, suggest(trial, self.plan.space))
            except ConfigError:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                if failure == MOST_FAILURES - 1:
                    raise
                continue
            self.points.append(point)
            trial.set_user_attr("point", json.dumps(dataclasses.asdict(point)))
            for item, excess in zip(
                self.plan.constraints, self._excess(point.metrics), strict=True
            ):
                trial.set_constraint(str(item), excess)
            self.study.tell(trial, [point.metrics[name] for name in self.plan.objectives])
            return point
        raise AssertionError("the last failure raises")

    def _climb(self, number: int, knobs: dict[str, Any]) -> TrialPoint:
        """Measure growing parts until all are seen or the point is given up."""
        counts = self.plan.parts()
        parts: list[Trial] = []
        reason = ""
        for count in counts:
            found = self._measure(f"point {number}", knobs, count)
            metrics = {name: found.metrics[name] for name in IS_MORE_BETTER}
            parts.append(Trial(count, found.first(count), metrics))
            if count < counts[-1]:
                reason = self._hopeless(parts[-1])
            if reason:
                break
        able = all(value <= 0 for value in self._excess(parts[-1].metrics))
        return TrialPoint(number, knobs, tuple(parts), able, reason)

    def _excess(self, metrics: Mapping[str, float]) -> list[float]:
        base = self.baseline.metrics
        return [item.excess(metrics[item.metric], base) for item in self.plan.constraints]

    def _hopeless(self, part: Trial) -> str:
        """Why a point need not be measured further; empty when it should."""
        count = part.num_prompts
        _, most = wilson(part.right, count)
        for item in self.plan.constraints:
            if item.metric == ACCURACY and item.is_lower:
                limit = item.limit(self.baseline.metrics)
                if most < limit:
                    return (
                        f"accuracy at most {most:.3f} after {count} prompts, {limit:.3f} is asked"
                    )
        for point in (point for point in self.points if point.is_feasible and not point.given_up):
            for other in point.parts:
                same = other.num_prompts == count and other.right >= part.right
                if same and self._is_clearly_worse(part.metrics, other.metrics):
                    return f"worse than point {point.number} after {count} prompts"
        return ""

    def _is_clearly_worse(self, own: Mapping[str, float], other: Mapping[str, float]) -> bool:
        names = [name for name in self.plan.objectives if name != ACCURACY]
        for name in names:
            mine, theirs = own[name], other[name]
            if not IS_MORE_BETTER[name]:
                mine, theirs = theirs, mine
            if theirs < CLEARLY * mine:
                return False
        return bool(names)


def _sampler(plan: StudyPlan, number: int, after_failure: bool) -> optuna.samplers.BaseSampler:
    """The sampler of one draw; uniform where TPE drew knobs that do not fit: it cannot learn that."""
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
