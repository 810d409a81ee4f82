"""Fast-dLLM's dual cache: compute prefix and suffix once per block, the block in every forward.

Source: arXiv:2505.22618, Section 3.1. Approximate: keys and values of prefix and suffix are those of the
block's first forward. Differs: on models with shifted logits the queries start one position earlier; rows
that a decoder needs outside the block, and positions that an edit changes there, are computed too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CacheProgress, PerBlock
from unmask.canvas import Ask, Canvas, Ints


@dataclass(frozen=True)
class Dual(PerBlock):
    """A cache that recomputes the running block, and everything when the block moves."""

    use_dual: bool = knob(
        True, "false: cache prefix, which also recomputes the suffix (Fast-dLLM's option)"
    )

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Return the positions of the running block."""
        return np.arange(*ask.window)


CACHE = Dual
