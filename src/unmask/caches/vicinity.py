"""dInfer's vicinity refresh: the running block and what is near it, every forward.

Source: dInfer, arXiv:2510.08666 (vicinity refresh). Approximate: the rest is as old as the last full
forward. `prefix_look=0 after_look=0 warmup_steps=0` is the dual cache. Differs: near the ends the window
slides instead of shrinking, so that its size stays; a full forward is also the block's first (the
published one runs the window once more); warm-up forwards fill the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CacheProgress, PerBlock
from unmask.canvas import Ask, Canvas, Ints
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Vicinity(PerBlock):
    """A window around the block; everything when the block moves, and every `cache_update_freq`."""

    prefix_look: int = knob(16, "positions left of the block that are recomputed too; 0: none")
    after_look: int = knob(16, "positions right of the block that are recomputed too; 0: none")
    warmup_steps: int = knob(0, "full forwards at the beginning; dInfer's scripts use 4")
    cache_update_freq: int | None = knob(
        None, "most forwards from one full one to the next, at least 1 (always); null: one a block"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("prefix_look", "after_look", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        if self.cache_update_freq is not None and self.cache_update_freq < 1:
            raise ConfigError(f"cache_update_freq={self.cache_update_freq} must be at least 1")

    def is_due(self, ask: Ask, state: CacheProgress) -> bool:
        """Return True for a new block, during warm-up, or by the schedule."""
        often = self.cache_update_freq is not None and state.num_since >= self.cache_update_freq
        return super().is_due(ask, state) or state.num_forwards < self.warmup_steps or often

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Select the window and its surroundings."""
        size = ask.window[1] - ask.window[0] + self.prefix_look + self.after_look
        last = min(ask.window[1] + self.after_look, len(canvas))
        first = max(0, min(ask.window[0] - self.prefix_look, last - size))
        return np.arange(first, min(max(last, first + size), len(canvas)))


CACHE = Vicinity
