"""dKV-Cache: what was just decoded is computed once more before it is kept.

Source: dKV-Cache, arXiv:2505.15781 (one-step delayed caching with a refresh interval). Alone it computes
every open position and those decoded in the last `delay` forwards, and everything every `interval` forwards
and for a new block. With `inner` it is that policy, whose choice gains the just decoded positions (and a
full forward every `interval`, when one is given). Approximate. Differs: the second forward may reuse
already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unmask.caches import knob
from unmask.caches.base import (
    AnyCache,
    CachePlan,
    CachePolicy,
    CacheProgress,
    Observation,
    PerBlock,
)
from unmask.canvas import NO_POSITIONS, Ask, Canvas, Ints, ModelFacts
from unmask.errors import ConfigError

INTERVAL = 4


@dataclass(frozen=True)
class OpenPositions(PerBlock):
    """dKV-Cache's own choice: every open position."""

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Select the undecided positions."""
        return canvas.open_positions()


@dataclass(frozen=True, slots=True)
class Delayed:
    """The policy's state; forwards in all and since a full one."""

    inner: object
    num_forwards: int = 0
    num_since: int = 0


@dataclass(frozen=True)
class DelayedCache(CachePolicy[Delayed]):
    """A policy whose committed positions stay in the queries for `delay` forwards."""

    inner: AnyCache | None = knob(
        None, "the policy that is delayed, e.g. dual or dllm; null: every open position"
    )
    delay: int = knob(1, "forwards for which a committed position is still computed, at least 1")
    interval: int | None = knob(
        None, "most forwards from one full one to the next; 1: always; default: 4, with inner never"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.delay < 1:
            raise ConfigError(f"delay={self.delay} must be at least 1")
        if self.interval is not None and self.interval < 1:
            raise ConfigError(f"interval={self.interval} must be at least 1")
        if self.inner is not None and (self.inner.exact or isinstance(self.inner, DelayedCache)):
            raise ConfigError(
                f"inner={self.inner.name} leaves nothing to delay; use dual, prefix, vicinity, dllm "
                f"or d2cache"
            )

    @property
    def layered(self) -> bool:
        """True if the inner policy stores the layers' outputs."""
        return self.policy.layered

    @property
    def policy(self) -> AnyCache:
        """The policy inside."""
        return OpenPositions() if self.inner is None else self.inner

    def start(self, canvas: Canvas, facts: ModelFacts) -> Delayed:
        """Return the inner policy's first state."""
        return Delayed(self.policy.start(canvas, facts))

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: Delayed
    ) -> tuple[CachePlan, Delayed]:
        """Plan the inner policy's choice plus the positions decoded last."""
        plan, inner = self.policy.plan(canvas, ask, rows, state.inner)
        interval = self.interval
        if interval is None and self.inner is None:
            interval = INTERVAL
        due = interval is not None and state.num_since >= interval
        recent = np.flatnonzero(canvas.origin >= max(0, state.num_forwards - self.delay))
        everything = np.arange(len(canvas))
        layers = plan.layers
        if layers is not None:
            forced = np.union1d(layers.forced, recent)
            layers = replace(layers, forced=NO_POSITIONS if due else forced)
            layers = replace(layers, prompt=True, response=True) if due else layers
            full = layers.prompt and layers.response
        else:
            queries = everything if due else np.union1d(plan.queries, recent)
            full = len(queries) == len(canvas)
            plan = replace(plan, queries=queries)
        after = Delayed(inner, state.num_forwards + 1, 1 if full else state.num_since + 1)
        return replace(plan, layers=layers), after

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: Delayed
    ) -> Delayed:
        """Update the inner policy."""
        return replace(state, inner=self.policy.observe(before, after, observation, state.inner))


CACHE = DelayedCache
