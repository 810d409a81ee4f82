"""Intervals: Wilson's for a share, the bootstrap over prompts for paired differences and ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from unmask.tune import goal

Z = 1.959964
RESAMPLES = 4000


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, n: int) -> Interval:
    """Return the share `hits / n` with its interval. Source: Wilson 1927."""
    return Interval(hits / n, *goal.wilson(hits, n, Z))


@cache
def resamples(n: int) -> np.ndarray:
    """Draw counts of each of `n` prompts in each resample, `(RESAMPLES, n)`."""
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts.astype(np.float64)


def resampled(
    columns: Sequence[Sequence[float]], statistic: Callable[..., np.ndarray | float]
) -> Interval:
    """Bootstrap a statistic of the sums of columns over prompts (seed 0).

    `columns` have one number a prompt each, in the same order; `statistic` takes their sums.
    """
    table = np.asarray(columns, dtype=float)
    drawn = np.asarray(statistic(*(table @ resamples(table.shape[1]).T)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(statistic(*table.sum(1))), float(low), float(high))


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return mean(a) - mean(b) over the same prompts."""
    n = len(a)
    assert n == len(b), "paired numbers"
    return resampled((a, b), lambda x, y: (x - y) / n)


def ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return sum(a) / sum(b), e.g. tokens per forward."""
    return resampled((a, b), lambda x, y: x / y)


def speedup(
    a: tuple[Sequence[float], Sequence[float]], b: tuple[Sequence[float], Sequence[float]]
) -> Interval:
    """Return the ratio of two ratios of sums over the same prompts, e.g. of tokens per forward."""
    return resampled((*a, *b), lambda p, q, r, s: (p / q) / (r / s))
