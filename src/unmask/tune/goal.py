"""Goals of a search: objectives by name, and constraints such as `accuracy>=0.99*baseline`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmask.errors import ConfigError, unknown_name

ACCURACY = "accuracy"
IS_MORE_BETTER = {
    ACCURACY: True,
    "tokens_per_second": True,
    "tokens_per_forward": True,
    "forwards_per_answer": False,
    "num_queries": False,
    "latency_mean_s": False,
    "latency_p95_s": False,
}
"""Metrics of objectives and constraints; True if more is better. Seconds depend on the machine's load."""

_CONSTRAINT = re.compile(
    r"\s*([a-z_0-9]+)\s*(>=|<=)\s*(?:([0-9.eE+-]+?)\s*(\*\s*baseline)?|(baseline))\s*"
)


@dataclass(frozen=True)
class Constraint:
    """Lower or upper bound of a metric, as a factor of the baseline's if `of_baseline`."""

    metric: str
    is_lower: bool
    bound: float
    of_baseline: bool

    def limit(self, baseline: Mapping[str, float]) -> float:
        """Return the bound as a number."""
        return self.bound * baseline[self.metric] if self.of_baseline else self.bound

    def excess(self, value: float, baseline: Mapping[str, float]) -> float:
        """Return the amount by which a value violates the limit; 0 or less if it does not."""
        excess = self.limit(baseline) - value if self.is_lower else value - self.limit(baseline)
        return excess if abs(excess) > 1e-12 else 0.0

    def __str__(self) -> str:
        """Return the constraint in the syntax of `parse_constraint`."""
        times = "*baseline" if self.of_baseline else ""
        return f"{self.metric}{'>=' if self.is_lower else '<='}{self.bound:g}{times}"


def parse_constraint(text: str) -> Constraint:
    """Parse `METRIC OP NUMBER[*baseline]`, OP being `>=` or `<=`. Raises ConfigError."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"constraint {text!r} cannot be read; write metric>=number or metric<=number, the number "
            f"perhaps times the baseline's: accuracy>=0.99*baseline"
        )
    metric, sign, number, times, alone = match.groups()
    _check_name("metric", metric)
    try:
        bound = 1.0 if alone else float(number)
    except ValueError:
        raise ConfigError(f"{number!r} in constraint {text!r} is not a number") from None
    return Constraint(metric, sign == ">=", bound, bool(times or alone))


def parse_objectives(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the objectives, with accuracy appended if it is not among them. Raises ConfigError."""
    for text in texts:
        _check_name("objective", text)
    if len(set(texts)) < len(texts):
        raise ConfigError(f"objectives {', '.join(texts)}: one occurs twice; leave it out")
    return tuple(texts) if ACCURACY in texts else (*texts, ACCURACY)


def _check_name(kind: str, name: str) -> None:
    if name not in IS_MORE_BETTER:
        raise unknown_name(kind, name, IS_MORE_BETTER)


def is_as_good(own: Mapping[str, float], other: Mapping[str, float], names: Sequence[str]) -> bool:
    """Return True if `own` is at least as good as `other` in every one of the metrics."""
    return all(
        own[name] >= other[name] if IS_MORE_BETTER[name] else own[name] <= other[name]
        for name in names
    )


def front(points: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[int]:
    """Return the indices of the Pareto front; of equal points the first."""
    indices: list[int] = []
    for index, own in enumerate(points):
        is_dominated = any(
            is_as_good(other, own, names) and (not is_as_good(own, other, names) or place < index)
            for place, other in enumerate(points)
            if place != index
        )
        if not is_dominated:
            indices.append(index)
    return indices


def wilson(right: float, count: int, z: float = 2.0) -> tuple[float, float]:
    """Return the interval of a share `right / count` (Wilson, 1927) at `z` standard errors."""
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)
