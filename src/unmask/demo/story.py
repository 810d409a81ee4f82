"""The making of a word problem: number ranges, sentences and worked steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unmask.demo import phrases as ph
from unmask.demo import words


@dataclass(frozen=True, slots=True)
class LevelRanges:
    """Number ranges of a curriculum level."""

    operand: int
    total: int
    factor: int
    quotient: int
    divisor: int


LIMITS: tuple[LevelRanges, ...] = (
    LevelRanges(operand=20, total=50, factor=6, quotient=6, divisor=5),
    LevelRanges(operand=40, total=80, factor=9, quotient=9, divisor=9),
    LevelRanges(operand=50, total=100, factor=10, quotient=10, divisor=10),
    LevelRanges(operand=40, total=80, factor=9, quotient=9, divisor=9),
)


class DeadEndError(Exception):
    """Raised when the numbers drawn so far allow no next step; the caller draws again."""


class Story:
    """A problem under construction: sentences, worked steps and the running total."""

    def __init__(self, rng: random.Random, limits: LevelRanges) -> None:
        """Choose the people and the thing of the story."""
        self.rng = rng
        self.limits = limits
        self.total = 0
        self.sentences: list[str] = []
        self.steps: list[tuple[str, int, str, int, int]] = []
        boy = rng.random() < 0.5
        hero = rng.choice(words.BOYS if boy else words.GIRLS)
        friend = hero
        while friend == hero:
            friend = rng.choice(words.BOYS if rng.random() < 0.5 else words.GIRLS)
        self.thing = rng.choice(words.THINGS)
        he = "he" if boy else "she"
        x, y = rng.sample(words.COLOURS[:6] if rng.random() < 0.8 else words.COLOURS[6:], 2)
        self.fields: dict[str, object] = {
            "N": hero,
            "F": friend,
            "s": he,
            "S": he.title(),
            "him": "him" if boy else "her",
            "o": self.thing.one,
            "os": self.thing.many,
            "cs": rng.choice(words.CONTAINERS),
            "ks": rng.choice(words.PACKS),
            "fs": rng.choice(words.FRIENDS),
            "place": rng.choice(words.PLACES),
            "v": rng.choice(ph.MOVES),
            "bus": rng.choice(ph.VEHICLES),
            "x": x,
            "y": y,
        }

    def say(self, templates: Sequence[str], **numbers: int) -> None:
        """Add a sentence in one of the given wordings."""
        fields = {**self.fields, **numbers}
        if self.rng.random() < 0.15:
            fields["S"] = fields["N"]
        self.sentences.append(self.rng.choice(templates).format(**fields))

    def work(self, labels: tuple[str, str], left: int, operator: str, right: int) -> None:
        """Add a worked equation and make its result the running total."""
        label = labels[0] if self.rng.random() < 0.8 else labels[1]
        self.total = apply(left, operator, right)
        if not 1 <= self.total <= self.limits.total:
            raise DeadEndError
        self.steps.append((label.format(**self.fields), left, operator, right, self.total))

    def number(self, low: int, high: int, want: Callable[[int], bool] | None = None) -> int:
        """Draw a number of a range, small ones twice as often, that satisfies ``want``."""
        if self.rng.random() < 0.5:
            high = min(high, max(20, low + 5))
        numbers = [n for n in range(low, high + 1) if want is None or want(n)]
        if not numbers:
            raise DeadEndError
        return self.rng.choice(numbers)

    def factors(self, most: int = 100) -> tuple[int, int]:
        """Draw two factors whose product is at most ``most``."""
        a = self.number(2, min(self.limits.factor, most // 2))
        return a, self.number(2, min(self.limits.factor, most // a))

    def operand(self, sign: int, divisible: bool = False) -> int:
        """Draw a number to add to (or subtract from) the running total."""
        high = self.limits.total - self.total if sign > 0 else self.total - 1

        def want(n: int) -> bool:
            return not divisible or bool(divisors(self.total + sign * n, self.limits))

        return self.number(2, min(self.limits.operand, high), want)


def apply(left: int, operator: str, right: int) -> int:
    """Compute one of the four operations (division must be exact)."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if left % right:
        raise DeadEndError
    return left // right


def divisors(total: int, limits: LevelRanges) -> list[int]:
    """Return the numbers of people a total can be shared among."""
    return [
        k
        for k in range(2, limits.divisor + 1)
        if total % k == 0 and 2 <= total // k <= limits.quotient
    ]
