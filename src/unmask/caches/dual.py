"""Fast-dLLM's dual cache: prefix and suffix are computed once per block, only the block every forward.

Source: arXiv:2505.22618, Section 3.1. Approximate: both sides' keys and values are those of the
block's first forward. Differs: on models with shifted logits the queries start one slot earlier.
"""

from __future__ import annotations

import numpy as np

from unmask.caches import PerBlock
from unmask.canvas import Ask, Canvas, Ints


class Dual(PerBlock):
    """The running block is recomputed every forward; everything when the block moves."""

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints) -> Ints:
        """The window and whatever rows are needed outside it."""
        return np.union1d(np.arange(*ask.window), rows).astype(np.int64)


CACHE = Dual
