"""d2Cache: after the first forward only what is about to be decoded and what the rest looks at.

Source: d2Cache, arXiv:2509.23094 (Eq. 3: certainty prior). A forward computes the `current_k` open
positions of the largest confidence times certainty density (the running block's first), the positions that
the last edit changed, the positions of the largest attention rollout that share `rollout_p` of it, and gaps
up to `inflate_w` between them. Approximate; positions that were not computed are not decoded. Differs from
the published code: confidences are those of the last time a position was read (there, and with
`compat=True`, of the first), one never read counts with the mean; rows of a batch are not topped up to
equal numbers; what a decoder must see (an answer's span, decided positions, the tail) is computed too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from unmask.caches import knob
from unmask.caches.base import CachePlan, CachePolicy, Observation
from unmask.canvas import (
    NO_POSITIONS,
    NO_SCORES,
    Ask,
    Bools,
    Canvas,
    Floats,
    Ints,
    ModelFacts,
    edited,
    places,
)
from unmask.errors import ConfigError
from unmask.selection import certainty_density, ranking


@dataclass(frozen=True, slots=True)
class Known:
    """Of every position its last confidence (nan: never read) and importance; positions edited since."""

    confidence: Floats = field(default_factory=lambda: NO_SCORES)
    importance: Floats = field(default_factory=lambda: NO_SCORES)
    stale: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class D2Cache(CachePolicy[Known]):
    """Two-stage selection."""

    rollout_p: float = knob(
        0.1,
        "share of the attention rollout whose positions are recomputed, in [0, 1]; 1: every position",
    )
    current_k: int = knob(
        32, "open positions that are recomputed, at least 1; gen_length: all of them"
    )
    sigma: float = knob(
        10.0, "width in positions of the certainty prior, > 0; small: near decided text only"
    )
    inflate_w: int = knob(4, "gaps up to this distance are filled; 0: none")
    compat: bool = knob(
        False,
        "a position keeps the confidence of the first forward that read it, as in the published code",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.rollout_p <= 1:
            raise ConfigError(f"rollout_p={self.rollout_p} must be between 0 and 1")
        if self.current_k < 1:
            raise ConfigError(f"current_k={self.current_k} must be at least 1")
        if not self.sigma > 0:
            raise ConfigError(f"sigma={self.sigma} must be greater than 0")
        if self.inflate_w < 0:
            raise ConfigError(f"inflate_w={self.inflate_w} must be at least 0")

    def start(self, canvas: Canvas, facts: ModelFacts) -> Known:
        """Return the state before the first forward."""
        return Known()

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: Known) -> tuple[CachePlan, Known]:
        """Plan all positions at first, then the selection."""
        if not len(state.importance):
            return CachePlan(np.arange(len(canvas)), watched=True), state
        shift = int((rows != ask.rows).any())
        inside = (ask.rows >= ask.window[0]) & (ask.rows < ask.window[1])
        free = canvas.open[ask.rows] & inside & ~np.isin(ask.rows, ask.needed)
        chosen = np.zeros(len(canvas), dtype=np.bool_)
        chosen[rows[~free]] = True
        chosen[np.maximum(self.next_decoded(canvas, ask.window, state) - shift, 0)] = True
        if free.any() and not chosen[rows[free]].any():
            chosen[rows[free][0]] = True
        chosen[state.stale] = True
        chosen |= self.looked_at(chosen, state.importance)
        queries = np.flatnonzero(self.inflated(chosen))
        return CachePlan(queries, watched=True), state

    def next_decoded(self, canvas: Canvas, window: tuple[int, int], state: Known) -> Ints:
        """Select the open positions that are likely to be decoded next."""
        start, end = window
        size = max(1, end - start)
        waiting = canvas.open_positions(start)
        if not len(waiting):
            return NO_POSITIONS
        last = int(waiting[min(self.current_k, len(waiting)) - 1])
        near = waiting[waiting < start + ((last - start) // size + 1) * size]
        confidence = state.confidence[near]
        known = state.confidence[~np.isnan(state.confidence)]
        confidence = np.where(np.isnan(confidence), known.mean() if len(known) else 1.0, confidence)
        reach = len(canvas) - canvas.prompt_length
        score = confidence * certainty_density(~canvas.open, near, self.sigma, reach)
        score = score + np.where(near < end, score.max(), 0.0)
        best: Ints = near[ranking(score)[: self.current_k]]
        return best

    def looked_at(self, chosen: Bools, importance: Floats) -> Bools:
        """Select the most important other positions: those that hold `rollout_p` of it, at least one."""
        others = np.flatnonzero(~chosen)
        found = np.zeros(len(chosen), dtype=np.bool_)
        if not len(others):
            return found
        order = others[ranking(importance[others])]
        if self.rollout_p < 1:
            shares = np.cumsum(importance[order]) / max(float(importance[order].sum()), 1e-9)
            order = order[: max(1, int((shares <= self.rollout_p).sum()))]
        found[order] = True
        return found

    def inflated(self, chosen: Bools) -> Bools:
        """Fill short gaps."""
        positions = np.flatnonzero(chosen)
        gaps = np.flatnonzero(np.diff(positions) <= self.inflate_w)
        filled: Bools = chosen.copy()
        for i in gaps:
            filled[positions[i] : positions[i + 1]] = True
        return filled

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: Known
    ) -> Known:
        """Remember what was read and looked at, and what changed."""
        assert observation.importance is not None, "the plan watched"
        confidence = np.full(len(before), np.nan)
        if len(state.confidence) == len(before):
            confidence = state.confidence.copy()
        told = observation.reading.undecided(before)
        fresh = np.isnan(confidence[told.positions]) | (not self.compat)
        confidence[told.positions[fresh]] = told.confidence[fresh]
        at = places(before, after)
        kept = at >= 0
        return replace(
            state,
            confidence=np.where(kept, confidence[at], np.nan),
            importance=np.where(kept, observation.importance[at], 0.0),
            stale=np.flatnonzero(edited(before, after)),
        )


CACHE = D2Cache
