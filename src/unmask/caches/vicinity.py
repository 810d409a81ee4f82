"""dInfer's vicinity refresh: compute the running block and the positions near it in every forward.

Source: dInfer, arXiv:2510.08666 (vicinity refresh). Approximate: keys and values of all other positions
are those of the last full forward. With `prefix_look=0 after_look=0 warmup_steps=0` it equals cache dual.
Differs: near the ends of the canvas the window slides instead of shrinking, so that its size is constant; a
full forward is also the block's first one (the published code computes the window once more); warm-up
forwards fill the cache.
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
    """A cache that recomputes a window around the block, and everything when the block moves."""

    prefix_look: int = knob(
        16, "number of positions left of the block to recompute, at least 0; 0: none, large: all"
    )
    after_look: int = knob(
        16, "number of positions right of the block to recompute, at least 0; 0: none, large: all"
    )
    warmup_steps: int = knob(
        0,
        "number of full forwards at the beginning, at least 0; 0: none, large: all; dInfer's scripts use 4",
    )
    cache_update_freq: int | None = knob(
        None,
        "a full forward at least every so many forwards, at least 1; 1: always, large: "
        "once per block; null: once per block only",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("prefix_look", "after_look", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        if self.cache_update_freq is not None and self.cache_update_freq < 1:
            raise ConfigError(f"cache_update_freq={self.cache_update_freq} must be at least 1")

    def is_due(self, ask: Ask, state: CacheProgress) -> bool:
        """Return True for a new block, during warm-up and every `cache_update_freq` forwards."""
        often = self.cache_update_freq is not None and state.num_since >= self.cache_update_freq
        return super().is_due(ask, state) or state.num_forwards < self.warmup_steps or often

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Return the running block and its vicinity."""
        size = ask.window[1] - ask.window[0] + self.prefix_look + self.after_look
        last = min(ask.window[1] + self.after_look, len(canvas))
        first = max(0, min(ask.window[0] - self.prefix_look, last - size))
        return np.arange(first, min(max(last, first + size), len(canvas)))


CACHE = Vicinity
