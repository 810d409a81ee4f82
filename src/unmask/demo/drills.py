"""Rows of single operations, of which training masks only the results."""

from __future__ import annotations

import random

from unmask.demo.example import Example
from unmask.demo.story import LIMITS, LevelRanges


def _small_or_any(rng: random.Random, low: int, high: int) -> int:
    return rng.randint(low, min(high, 20) if rng.random() < 0.4 and low < 20 else high)


def _operation(rng: random.Random, limits: LevelRanges) -> tuple[str, int]:
    """Draw one operation and its result."""
    draw = rng.random()
    if draw < 0.34:
        b = _small_or_any(rng, 2, limits.operand)
        a = _small_or_any(rng, 2, limits.total - b)
        return f"{a}+{b}", a + b
    if draw < 0.68:
        a = _small_or_any(rng, 3, limits.total)
        b = _small_or_any(rng, 2, min(limits.operand, a - 1))
        return f"{a}-{b}", a - b
    if draw < 0.83:
        a, b = rng.randint(2, limits.factor), rng.randint(2, limits.factor)
        return f"{a}*{b}", a * b
    if draw < 0.89:
        b = rng.choice((2, 3))
        a = rng.randint(2, limits.total // b)
        return f"{a}*{b}", a * b
    if draw < 0.94:
        half = rng.randint(2, limits.total // 2)
        return f"{2 * half}/2", half
    a, b = rng.randint(2, limits.quotient), rng.randint(2, limits.divisor)
    return f"{a * b}/{b}", a


def drill(rng: random.Random, level: int = 4) -> Example:
    """Draw 6 to 8 equations, one a line."""
    lines: list[str] = []
    spans: list[tuple[int, int]] = []
    position = 0
    for _ in range(rng.randint(6, 8)):
        left, result = _operation(rng, LIMITS[level - 1])
        line = f"{left}={result}"
        spans.append((position + len(left) + 1, position + len(line)))
        lines.append(line)
        position += len(line) + 1
    return Example("drill", "", "\n".join(lines), "", tuple(spans))
