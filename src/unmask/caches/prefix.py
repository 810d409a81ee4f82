"""Fast-dLLM's prefix cache: what lies left of the running block is computed once per block.

Source: arXiv:2505.22618, Section 3.1. Approximate: prefix keys and values are those of the block's
first forward. Differs: on models with shifted logits the queries start one position earlier, so that the
block's first position has its row; what an edit changes left of the block is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CacheProgress, PerBlock
from unmask.canvas import Ask, Canvas, Ints


@dataclass(frozen=True)
class Prefix(PerBlock):
    """Block and suffix are recomputed every forward; everything when the block moves."""

    use_dual: bool = knob(
        False, "true is cache dual: the suffix is kept too (Fast-dLLM's spelling)"
    )

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Select from the first needed position to the end."""
        first = min(ask.window[0], int(rows.min(initial=ask.window[0])))
        return np.arange(first, len(canvas))


CACHE = Prefix
