"""Formatting of the numbers of a cell in tables."""

from __future__ import annotations

from collections.abc import Sequence

import stats
from cells import Measured
from stats import Interval


def percent(x: Interval, digits: int = 1) -> str:
    """Format a share with its interval, in percent."""
    value, low, high = (f"{100 * number:.{digits}f}" for number in x)
    return f"{value} [{low}, {high}]"


def points(x: Interval) -> str:
    """Format a difference of shares in percentage points."""
    return f"{100 * x.value:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def number(x: Interval) -> str:
    """Format a ratio with its interval."""
    return f"{x.value:.2f} [{x.low:.2f}, {x.high:.2f}]"


def accuracy(got: Measured) -> str:
    """Format the share of right answers."""
    return percent(stats.wilson(sum(got.right), len(got.right)))


def against(got: Measured, other: Measured) -> str:
    """Format the difference of right answers over the prompts in common."""
    n = min(len(got.right), len(other.right))
    return points(stats.difference(got.right[:n], other.right[:n]))


def same(got: Measured, other: Measured) -> str:
    """Format the share of prompts with the same verdict, length and number of forwards."""
    mine = zip(got.right, got.tokens, got.forwards, strict=True)
    its = zip(other.right, other.tokens, other.forwards, strict=True)
    equal = [a == b for a, b in zip(mine, its, strict=False)]
    return f"{100 * sum(equal) / len(equal):.0f}"


def per_forward(got: Measured) -> str:
    """Return answer tokens per forward."""
    return number(stats.ratio(got.tokens, got.forwards))


def times(got: Measured, other: Measured) -> str:
    """Format the ratio of tokens per forward over the prompts in common."""
    if is_empty(got) or is_empty(other):
        return "-"
    n = min(len(got.right), len(other.right))
    mine, its = (got.tokens[:n], got.forwards[:n]), (other.tokens[:n], other.forwards[:n])
    return number(stats.speedup(mine, its))


def forwards(got: Measured) -> str:
    """Format forwards per answer."""
    return f"{sum(got.forwards) / len(got.forwards):.1f}"


def queries(got: Measured) -> str:
    """Format positions computed per answer token."""
    return "-" if is_empty(got) else f"{sum(got.queries) / sum(got.tokens):.1f}"


def is_empty(got: Measured) -> bool:
    """Return True if most answers are empty, so that ratios are undefined."""
    return sum(got.tokens) < len(got.tokens)


def invalid(got: Measured) -> str:
    """Format the share of answers without the form."""
    return f"{100 * sum(got.invalid) / len(got.invalid):.1f}"


def ece(got: Measured) -> str:
    """Format the expected calibration error of the committed tokens."""
    total = sum(row[2] for row in got.bins)
    return f"{sum(abs(c - r) for c, r, _ in got.bins) / max(1, total):.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def per_forward_short(got: Measured) -> str:
    """Format answer tokens per forward, without interval."""
    return f"{sum(got.tokens) / sum(got.forwards):.2f}"


def number3(x: Sequence[float]) -> str:
    """Format a small number with its interval."""
    return f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"
