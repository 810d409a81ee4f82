"""Fast-dLLM's prefix cache: what lies left of the running block is computed once per block.

Source: arXiv:2505.22618, Section 3.1. Approximate: prefix keys and values are those of the block's
first forward. Differs: on models with shifted logits the queries start one slot earlier, so that the
block's first slot has its row.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmask.caches import Plan
from unmask.canvas import Ask, Canvas, Ints

Window = tuple[int, int]


class Prefix:
    """Block and suffix are recomputed every forward; everything when the block moves."""

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def start(self) -> Window | None:
        """No block yet."""
        return None

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: Window | None
    ) -> tuple[Plan, Window]:
        """From the first needed slot to the end."""
        if state is None or state[1] != ask.window[1]:
            return Plan(np.arange(len(canvas)), refresh=True), ask.window
        first = min(ask.window[0], int(rows.min(initial=ask.window[0])))
        return Plan(np.arange(first, len(canvas)), refresh=False), state

    def observe(self, before: Canvas, after: Canvas, state: Window | None) -> Window | None:
        """Edits lie in the part that is recomputed; slots that move make the next forward a full one."""
        return state if len(before) == len(after) else None


CACHE = Prefix
