"""Fast-dLLM's prefix cache: compute the positions left of the running block once per block.

Source: arXiv:2505.22618, Section 3.1. Approximate: keys and values of the prefix are those of the block's
first forward. Differs: on models with shifted logits the queries start one position earlier, so that the
block's first position has its row; positions that an edit changes left of the block are recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CacheProgress, PerBlock
from unmask.canvas import Ask, Canvas, Ints


@dataclass(frozen=True)
class Prefix(PerBlock):
    """A cache that recomputes the running block and the suffix, and everything when the block moves."""

    use_dual: bool = knob(
        False, "true: cache dual, which also reuses the suffix (Fast-dLLM's option)"
    )

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Return the positions from the running block to the end."""
        first = min(ask.window[0], int(rows.min(initial=ask.window[0])))
        return np.arange(first, len(canvas))


CACHE = Prefix
