"""How a measured cell's numbers are spelled in a table."""

from __future__ import annotations

from collections.abc import Sequence

import stats
from cells import Measured
from stats import Interval


def percent(x: Interval, digits: int = 1) -> str:
    """A share with its interval, in percent."""
    value, low, high = (f"{100 * number:.{digits}f}" for number in x)
    return f"{value} [{low}, {high}]"


def points(x: Interval) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * x.value:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def number(x: Interval) -> str:
    """A ratio with its interval."""
    return f"{x.value:.2f} [{x.low:.2f}, {x.high:.2f}]"


def accuracy(got: Measured) -> str:
    """Share of right answers."""
    return percent(stats.wilson(sum(got.right), len(got.right)))


def against(got: Measured, other: Measured) -> str:
    """Difference of right answers over the prompts that both have."""
    n = min(len(got.right), len(other.right))
    return points(stats.difference(got.right[:n], other.right[:n]))


def same(got: Measured, other: Measured) -> str:
    """Share of prompts with the same verdict, length and number of forwards."""
    mine = zip(got.right, got.tokens, got.forwards, strict=True)
    its = zip(other.right, other.tokens, other.forwards, strict=True)
    equal = [a == b for a, b in zip(mine, its, strict=False)]
    return f"{100 * sum(equal) / len(equal):.0f}"


def per_forward(got: Measured) -> str:
    """Answer tokens per forward."""
    return number(stats.ratio(got.tokens, got.forwards))


def times(got: Measured, other: Measured) -> str:
    """How many times the other's tokens per forward, over the prompts that both have."""
    if is_empty(got) or is_empty(other):
        return "-"
    n = min(len(got.right), len(other.right))
    mine, its = (got.tokens[:n], got.forwards[:n]), (other.tokens[:n], other.forwards[:n])
    return number(stats.speedup(mine, its))


def forwards(got: Measured) -> str:
    """Forwards an answer."""
    return f"{sum(got.forwards) / len(got.forwards):.1f}"


def queries(got: Measured) -> str:
    """Positions computed for an answer token."""
    return "-" if is_empty(got) else f"{sum(got.queries) / sum(got.tokens):.1f}"


def is_empty(got: Measured) -> bool:
    """Whether most answers have no token at all: nothing is to be divided by them."""
    return sum(got.tokens) < len(got.tokens)


def invalid(got: Measured) -> str:
    """Share of answers without the form."""
    return f"{100 * sum(got.invalid) / len(got.invalid):.1f}"


def ece(got: Measured) -> str:
    """Expected calibration error of the committed tokens."""
    total = sum(row[2] for row in got.bins)
    return f"{sum(abs(c - r) for c, r, _ in got.bins) / max(1, total):.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def per_forward_short(got: Measured) -> str:
    """Answer tokens per forward, without interval."""
    return f"{sum(got.tokens) / sum(got.forwards):.2f}"


def number3(x: Sequence[float]) -> str:
    """A small number with its interval."""
    return f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"
