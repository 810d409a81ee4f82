"""dKV-Cache: recompute a decoded position for `delay` more forwards before its keys are reused.

Source: dKV-Cache, arXiv:2505.15781 (dKV-Cache-Decode: one-step delay, refresh interval), and its code.
Without `inner`, a forward computes every open position and those decoded in the last `delay` forwards. It
computes everything in a block's first forward and in every `interval`-th after it; with unshifted logits
(LLaDA) also in the next `delay` forwards of a block. With shifted logits (Dream), where the row of a
position is its left neighbor's, the delay holds for these rows too (`shift_type` un_right in the code).
With `inner`, it computes the positions that this policy selects and those decoded in the last `delay`
forwards, and everything every `interval` forwards if that is set. Approximate. Differs: Dream's code has no
blocks.
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
class DelayedState:
    """The inner policy's state; forwards in total, of the block, and since the last full one."""

    inner: object
    num_forwards: int = 0
    num_since: int = 0
    window_end: int | None = None
    num_in_block: int = 0


@dataclass(frozen=True)
class DelayedCache(CachePolicy[DelayedState]):
    """A policy whose committed positions stay in the queries for `delay` forwards."""

    inner: AnyCache | None = knob(
        None, "the policy to delay, e.g. dual or dllm; null: one that computes every open position"
    )
    delay: int = knob(
        1,
        "number of forwards that still compute a committed position, at least 1; 1: one, "
        "large: every committed position",
    )
    interval: int | None = knob(
        None,
        "a full forward at least every so many forwards, at least 1; 1: always, large: the first of "
        "a block; null: 4, "
        "or never with inner",
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
        """True if the inner policy's plans have `layers`."""
        return self.policy.layered

    @property
    def policy(self) -> AnyCache:
        """The inner policy, or the default one."""
        return OpenPositions() if self.inner is None else self.inner

    def start(self, canvas: Canvas, facts: ModelFacts) -> DelayedState:
        """Return the inner policy's first state."""
        return DelayedState(self.policy.start(canvas, facts))

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: DelayedState
    ) -> tuple[CachePlan, DelayedState]:
        """Plan the inner policy's queries and the recently decoded positions."""
        plan, inner = self.policy.plan(canvas, ask, rows, state.inner)
        is_next = state.window_end == ask.window[1]
        num_in_block = state.num_in_block if is_next else 0
        is_shifted = bool((rows != ask.rows).any())
        due = self.is_due(num_in_block, state.num_since, is_shifted)
        recent = np.flatnonzero(canvas.origin >= max(0, state.num_forwards - self.delay))
        if is_shifted and self.inner is None:
            recent = self.with_rows(recent, plan.queries, len(canvas))
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
        after = DelayedState(
            inner,
            state.num_forwards + 1,
            1 if full else state.num_since + 1,
            ask.window[1],
            num_in_block + 1,
        )
        return replace(plan, layers=layers), after

    @staticmethod
    def with_rows(recent: Ints, queries: Ints, length: int) -> Ints:
        """Add the rows that predicted recent positions, and the last row if the one before is computed."""
        rows = np.union1d(recent, np.maximum(recent - 1, 0))
        is_before_last = length - 2 in rows or length - 2 in queries
        return np.union1d(rows, [length - 1]) if is_before_last else rows

    def defaults(self) -> dict[str, object]:
        """Return the interval, which only a policy of its own has."""
        return {"interval": INTERVAL} if self.inner is None else {}

    def is_due(self, num_in_block: int, num_since: int, is_shifted: bool) -> bool:
        """Return whether the next forward computes all positions, beyond what the policy asks for."""
        if self.inner is not None:
            return self.interval is not None and num_since >= self.interval
        interval = INTERVAL if self.interval is None else self.interval
        warms_up = not is_shifted and num_in_block <= self.delay
        return warms_up or num_in_block % interval == 0

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: DelayedState
    ) -> DelayedState:
        """Update the inner policy."""
        return replace(state, inner=self.policy.observe(before, after, observation, state.inner))


CACHE = DelayedCache
