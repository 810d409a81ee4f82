"""No cache: every forward computes every position.

Source: the definition; every reference implementation without its cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unmask.caches.base import CachePlan, CachePolicy, Observation
from unmask.canvas import Ask, Canvas, Ints, ModelFacts


@dataclass(frozen=True)
class NoCache(CachePolicy[None]):
    """No cache; the reference for every other policy."""

    stores: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def start(self, canvas: Canvas, facts: ModelFacts) -> None:
        """Return an empty state."""

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: None) -> tuple[CachePlan, None]:
        """Plan all positions."""
        return CachePlan(np.arange(len(canvas))), None

    def observe(self, before: Canvas, after: Canvas, observation: Observation, state: None) -> None:
        """Return the state unchanged."""


CACHE = NoCache
