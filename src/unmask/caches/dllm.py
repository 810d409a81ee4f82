"""dLLM-Cache: store keys, values and layer outputs; recompute them where the values changed most.

Source: dLLM-Cache, arXiv:2506.06295. The prompt is computed every `kp` forwards and the response every
`kr`. In between, each layer computes the share `rou` of the response whose values changed most in direction
(the first layer always computes all). Approximate; every position has a logit row, some of them stale.
Differs: positions that an edit inserts, replaces or remasks are computed in the next forward; each row of a
batch counts its own forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CachePlan, CachePolicy, Layers, Observation
from unmask.canvas import NO_POSITIONS, Ask, Canvas, Ints, ModelFacts, edited, places
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DllmState:
    """The number of forwards, and positions that the next one must compute."""

    num_forwards: int = 0
    forced: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class DllmCache(CachePolicy[DllmState]):
    """A cache of layer outputs with refresh intervals for prompt and response."""

    kp: int = knob(
        50, "compute the whole prompt every so many forwards, at least 1; 1: always, large: once"
    )
    kr: int = knob(
        2, "compute the whole response every so many forwards, at least 1; 1: always, large: once"
    )
    rou: float = knob(
        0.25,
        "share of the response to compute in the other forwards, in [0, 1]; 0: none of "
        "it, 1: all of it",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("kp", "kr"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.rou <= 1:
            raise ConfigError(f"rou={self.rou} must be between 0 and 1")

    @property
    def layered(self) -> bool:
        """True: plans have `layers`."""
        return True

    def start(self, canvas: Canvas, facts: ModelFacts) -> DllmState:
        """Return the state before the first forward."""
        return DllmState()

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: DllmState
    ) -> tuple[CachePlan, DllmState]:
        """Plan all positions; the layers after the first compute a part of them."""
        size = len(canvas) - canvas.prompt_length
        layers = Layers(
            prompt_length=canvas.prompt_length,
            prompt=state.num_forwards % self.kp == 0,
            response=state.num_forwards % self.kr == 0,
            num_moved=int(self.rou * size),
            forced=state.forced,
        )
        after = DllmState(state.num_forwards + 1)
        return CachePlan(np.arange(len(canvas)), layers=layers), after

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: DllmState
    ) -> DllmState:
        """Record the edited positions to force; commits are left to the comparison of values."""
        at = places(before, after)
        committed = (at >= 0) & before.open[at] & ~after.open
        return replace(state, forced=np.flatnonzero(edited(before, after) & ~committed))


CACHE = DllmCache
