"""Fast-dLLM's prefix cache: what lies left of the running block is computed once per block.

Source: arXiv:2505.22618, Section 3.1. Approximate: prefix keys and values are those of the block's
first forward. Differs: on models with shifted logits the queries start one slot earlier, so that the
block's first slot has its row.
"""

from __future__ import annotations

import numpy as np

from unmask.caches import PerBlock
from unmask.canvas import Ask, Canvas, Ints


class Prefix(PerBlock):
    """Block and suffix are recomputed every forward; everything when the block moves."""

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints) -> Ints:
        """From the first needed slot to the end."""
        first = min(ask.window[0], int(rows.min(initial=ask.window[0])))
        return np.arange(first, len(canvas))


CACHE = Prefix
