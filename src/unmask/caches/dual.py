"""Fast-dLLM's dual cache: prefix and suffix are computed once per block, only the block every forward.

Source: arXiv:2505.22618, Section 3.1. Approximate: both sides' keys and values are those of the
block's first forward. Differs: on models with shifted logits the queries start one position earlier; rows
that a decoder needs outside the block, and what an edit changes there, are computed too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CacheProgress, PerBlock
from unmask.canvas import Ask, Canvas, Ints


@dataclass(frozen=True)
class Dual(PerBlock):
    """The running block is recomputed every forward; everything when the block moves."""

    use_dual: bool = knob(
        True, "false is cache prefix: the suffix is computed too (Fast-dLLM's spelling)"
    )

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Select the window."""
        return np.arange(*ask.window)


CACHE = Dual
