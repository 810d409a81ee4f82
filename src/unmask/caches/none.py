"""No cache: every forward computes every slot.

Source: the definition; every reference's uncached path.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmask.caches import Plan
from unmask.canvas import Ask, Canvas, Ints


class NoCache:
    """Exact, and the reference for every other policy."""

    stores: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def start(self) -> None:
        """Nothing to remember."""

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: None) -> tuple[Plan, None]:
        """Everything."""
        return Plan(np.arange(len(canvas)), refresh=True), None

    def observe(self, before: Canvas, after: Canvas, state: None) -> None:
        """Nothing to update."""


CACHE = NoCache
