"""No cache: every forward computes every slot.

Source: the definition; every reference's uncached path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unmask.caches.base import Plan, Seen
from unmask.canvas import Ask, Canvas, Ints, ModelFacts


@dataclass(frozen=True)
class NoCache:
    """Exact, and the reference for every other policy."""

    stores: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def start(self, canvas: Canvas, facts: ModelFacts) -> None:
        """Nothing to remember."""

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: None) -> tuple[Plan, None]:
        """Everything."""
        return Plan(np.arange(len(canvas))), None

    def observe(self, before: Canvas, after: Canvas, seen: Seen, state: None) -> None:
        """Nothing to update."""


CACHE = NoCache
