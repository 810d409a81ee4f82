"""Measurement of a point of the search: evaluation of a method on a part of the task."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.evals.run import Progress, evaluate
from unmask.evals.run_folder import read_all
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

RESAMPLES = 2000


@dataclass(frozen=True)
class Measurement:
    """Metrics of a run and, by document, the score and the numbers of tokens, forwards and seconds."""

    metrics: Mapping[str, float]
    right: tuple[float, ...]
    tokens: tuple[int, ...]
    forwards: tuple[int, ...]
    seconds: tuple[float, ...]

    def first(self, count: int) -> float:
        """Return the sum of the scores of the first documents."""
        return sum(self.right[:count])


@dataclass(frozen=True)
class Bench:
    """A model and the settings common to all points; each point has a run folder of its own.

    Answers in the run folder are reused, also those of a shorter part.
    """

    llm: LLM
    settings: EvalSettings
    folder: Path

    def measure(
        self, knobs: Mapping[str, object], offset: int, count: int, progress: Progress
    ) -> Measurement:
        """Evaluate documents `offset` to `offset + count`. Raises ConfigError for unsuitable knobs."""
        settings = dataclasses.replace(
            self.settings,
            method=self.settings.method.with_values(knobs),
            offset=offset,
            limit=count,
        )
        name = settings.fingerprint() + (f"-from-{offset}" if offset else "")
        settings = dataclasses.replace(settings, output=str(self.folder / name))
        results = evaluate(settings, progress, self.llm)
        docs = set(results.docs)
        stored = [item.answer for item in read_all(settings.folder).values()]
        answers = sorted((a for a in stored if a.doc in docs), key=lambda answer: answer.doc)
        return Measurement(
            metrics=results.metrics,
            right=results.right,
            tokens=tuple(answer.counted.response for answer in answers),
            forwards=tuple(answer.num_forwards for answer in answers),
            seconds=tuple(answer.decode_s for answer in answers),
        )


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Comparison of two methods on the same documents, with intervals from resampling documents.

    `accuracy`: difference of the accuracies. `per_forward`, `per_second`: ratio of the tokens per forward
    and per second. The interval of the latter does not include variation of the machine's load.
    """

    accuracy: Interval
    per_forward: Interval
    per_second: Interval


def compare_paired(own: Measurement, other: Measurement, seed: int = 0) -> PairedDifference:
    """Compare `own` with `other` by a paired bootstrap over documents."""
    count = len(own.right)
    assert len(other.right) == count, "both answered the same documents"
    rng = random.Random(seed)
    draws = [[rng.randrange(count) for _ in range(count)] for _ in range(RESAMPLES)]

    def difference(rows: Sequence[int]) -> float:
        return sum(own.right[i] - other.right[i] for i in rows) / count

    def ratio(
        own_costs: Sequence[float], other_costs: Sequence[float]
    ) -> Callable[[Sequence[int]], float]:
        def statistic(rows: Sequence[int]) -> float:
            rate = sum(own.tokens[i] for i in rows) / max(1e-9, sum(own_costs[i] for i in rows))
            base = sum(other.tokens[i] for i in rows) / max(1e-9, sum(other_costs[i] for i in rows))
            return rate / max(1e-9, base)

        return statistic

    def interval(statistic: Callable[[Sequence[int]], float]) -> Interval:
        values = sorted(statistic(rows) for rows in draws)
        cut = RESAMPLES // 40
        return Interval(statistic(range(count)), values[cut], values[-1 - cut])

    return PairedDifference(
        accuracy=interval(difference),
        per_forward=interval(ratio(own.forwards, other.forwards)),
        per_second=interval(ratio(own.seconds, other.seconds)),
    )
