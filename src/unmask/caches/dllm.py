"""dLLM-Cache: keys, values and layer outputs are kept, and renewed where the values moved.

Source: dLLM-Cache, arXiv:2506.06295. The prompt is computed every `kp` forwards, the response every `kr`,
and in between the share `rou` of the response whose values turned most, layer by layer (the first layer
always wholly). Approximate; every position has a logit row, some of them old. Differs: what an edit
inserts, replaces or masks again is computed in the next forward; rows of a batch keep their own count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CachePlan, CachePolicy, Layers, Observation
from unmask.canvas import NO_POSITIONS, Ask, Canvas, Ints, ModelFacts, edited, places
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Count:
    """Forwards made, and positions that the next one must compute."""

    num_forwards: int = 0
    forced: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class DllmCache(CachePolicy[Count]):
    """Two refresh intervals and a share."""

    kp: int = knob(50, "forwards from one computation of the prompt to the next, at least 1")
    kr: int = knob(2, "forwards from one computation of the response to the next; 1: every forward")
    rou: float = knob(0.25, "share of the response computed in between, in [0, 1]; 1: all of it")

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("kp", "kr"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.rou <= 1:
            raise ConfigError(f"rou={self.rou} must be between 0 and 1")

    @property
    def layered(self) -> bool:
        """The layers' outputs are stored."""
        return True

    def start(self, canvas: Canvas, facts: ModelFacts) -> Count:
        """Return the state before the first forward."""
        return Count()

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: Count) -> tuple[CachePlan, Count]:
        """Plan all positions; the layers compute a part of them."""
        size = len(canvas) - canvas.prompt_length
        layers = Layers(
            prompt_length=canvas.prompt_length,
            prompt=state.num_forwards % self.kp == 0,
            response=state.num_forwards % self.kr == 0,
            num_moved=int(self.rou * size),
            forced=state.forced,
        )
        after = Count(state.num_forwards + 1)
        return CachePlan(np.arange(len(canvas)), layers=layers), after

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: Count
    ) -> Count:
        """Force edits other than commits, which show in the values."""
        at = places(before, after)
        committed = (at >= 0) & before.open[at] & ~after.open
        return replace(state, forced=np.flatnonzero(edited(before, after) & ~committed))


CACHE = DllmCache
