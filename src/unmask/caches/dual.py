"""Fast-dLLM's dual cache: prefix and suffix are computed once per block, only the block every forward.

Source: arXiv:2505.22618, Section 3.1. Approximate: both sides' keys and values are those of the
block's first forward. Differs: on models with shifted logits the queries start one slot earlier.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmask.caches import Plan
from unmask.canvas import Ask, Canvas, Ints

Window = tuple[int, int]


class Dual:
    """The running block is recomputed every forward; everything when the block moves."""

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def start(self) -> Window | None:
        """No block yet."""
        return None

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: Window | None
    ) -> tuple[Plan, Window]:
        """The window and whatever rows are needed outside it."""
        if state is None or state[1] != ask.window[1]:
            return Plan(np.arange(len(canvas)), refresh=True), ask.window
        window = np.arange(*ask.window)
        return Plan(np.union1d(window, rows).astype(np.int64), refresh=False), state

    def observe(self, before: Canvas, after: Canvas, state: Window | None) -> Window | None:
        """Edits in the window are recomputed; slots that move make the next forward a full one."""
        return state if len(before) == len(after) else None


CACHE = Dual
