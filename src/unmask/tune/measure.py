"""One point of the search measured: the evaluation of a method on a part of the task, answer by answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.evals.journal import read_all
from unmask.evals.run import evaluate
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

Told = Callable[[int, int], None]
RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """Metrics of a run and, document by document, its score and its numbers of tokens and forwards."""

    metrics: Mapping[str, float]
    right: tuple[float, ...]
    tokens: tuple[int, ...]
    forwards: tuple[int, ...]
    seconds: tuple[float, ...]

    def first(self, count: int) -> float:
        """The scores of the first documents, summed."""
        return sum(self.right[:count])


@dataclass(frozen=True)
class Bench:
    """A model and the settings that all points share; each point's answers are kept in a folder of its own.

    A point that was measured before is not answered again, and a longer part goes on from a shorter one.
    """

    llm: LLM
    settings: EvalSettings
    folder: Path

    def measure(self, knobs: Mapping[str, Any], offset: int, count: int, told: Told) -> Measured:
        """The documents `offset` to `offset + count`. Raises ConfigError for knobs that do not fit."""
        settings = dataclasses.replace(
            self.settings,
            method=self.settings.method.with_values(knobs),
            offset=offset,
            limit=count,
        )
        name = settings.fingerprint() + (f"-from-{offset}" if offset else "")
        settings = dataclasses.replace(settings, output=str(self.folder / name))
        results = evaluate(settings, told, self.llm)
        asked = set(results.docs)
        answers = [stored.answer for stored in read_all(settings.folder).values()]
        chosen = sorted((a for a in answers if a.doc in asked), key=lambda answer: answer.doc)
        return Measured(
            metrics=results.metrics,
            right=results.right,
            tokens=tuple(answer.counted.response for answer in chosen),
            forwards=tuple(answer.num_forwards for answer in chosen),
            seconds=tuple(answer.decode_s for answer in chosen),
        )


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Versus:
    """How a method differs from another on the same documents, with intervals by resampling documents.

    `accuracy`: its accuracy minus the other's. `per_forward`, `per_second`: its rate over the other's. The
    interval of seconds knows nothing of what else the machine does.
    """

    accuracy: Interval
    per_forward: Interval
    per_second: Interval


def versus(own: Measured, other: Measured, seed: int = 0) -> Versus:
    """`own` against `other`, document by document (a paired bootstrap)."""
    count = len(own.right)
    assert len(other.right) == count, "both answered the same documents"
    rng = random.Random(seed)
    draws = [[rng.randrange(count) for _ in range(count)] for _ in range(RESAMPLES)]

    def difference(rows: Sequence[int]) -> float:
        return sum(own.right[i] - other.right[i] for i in rows) / count

    def ratio(name: str) -> Callable[[Sequence[int]], float]:
        mine: Sequence[float] = getattr(own, name)
        theirs: Sequence[float] = getattr(other, name)

        def of(rows: Sequence[int]) -> float:
            rate = sum(own.tokens[i] for i in rows) / max(1e-9, sum(mine[i] for i in rows))
            base = sum(other.tokens[i] for i in rows) / max(1e-9, sum(theirs[i] for i in rows))
            return rate / max(1e-9, base)

        return of

    def interval(of: Callable[[Sequence[int]], float]) -> Interval:
        found = sorted(of(rows) for rows in draws)
        cut = RESAMPLES // 40
        return Interval(of(range(count)), found[cut], found[-1 - cut])

    return Versus(interval(difference), interval(ratio("forwards")), interval(ratio("seconds")))
