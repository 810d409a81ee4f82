"""d2Cache: recompute the positions likely to be decoded next and those with the most attention.

Source: d2Cache, arXiv:2509.23094 (Eq. 3: certainty prior). After a full first forward, each one computes
the `current_k` open positions with the largest product of confidence and certainty density (those of the
running block first), the positions that the last edit changed, the positions with the largest attention
rollout, which together have the share `rollout_p` of it, and gaps up to `inflate_w` between all of these.
Approximate; positions that are not computed are not decoded. Differs from the published code: a position's
confidence is that of its last reading (there, and with `compat=True`, of its first), and the mean if it was
never read; rows of a batch are not padded to equal numbers of queries; positions that the decoder needs (an
answer's span, decided positions, the tail) are computed too.
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
from unmask.selection import certainty_density, leading


@dataclass(frozen=True, slots=True)
class D2CacheState:
    """Each position's last confidence (nan: never read) and importance; positions edited since."""

    confidence: Floats = field(default_factory=lambda: NO_SCORES)
    importance: Floats = field(default_factory=lambda: NO_SCORES)
    stale: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class D2Cache(CachePolicy[D2CacheState]):
    """A cache that selects by expected decoding order, then by attention rollout."""

    rollout_p: float = knob(
        0.1,
        "share of the attention rollout that the recomputed positions have, in [0, 1]; 0: one more "
        "position, 1: all positions",
    )
    current_k: int = knob(
        32,
        "number of open positions that are recomputed, at least 1; 1: one, gen_length: all of them",
    )
    sigma: float = knob(
        10.0,
        "width of the certainty prior in positions, > 0; small: the positions nearest to decided text, far "
        "beyond gen_length: the most confident ones",
    )
    inflate_w: int = knob(
        4,
        "recompute gaps between selected positions up to this distance, at least 0; 0: none, large: all",
    )
    compat: bool = knob(
        False,
        "use the confidence of a position's first reading instead of its last, as in the published code",
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

    def start(self, canvas: Canvas, facts: ModelFacts) -> D2CacheState:
        """Return the state before the first forward."""
        return D2CacheState()

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: D2CacheState
    ) -> tuple[CachePlan, D2CacheState]:
        """Plan all positions for the first forward, the selection afterwards."""
        if not len(state.importance):
            return CachePlan(np.arange(len(canvas)), needs_importance=True), state
        shift = int((rows != ask.rows).any())
        inside = (ask.rows >= ask.window[0]) & (ask.rows < ask.window[1])
        free = canvas.open[ask.rows] & inside & ~np.isin(ask.rows, ask.needed)
        chosen = np.zeros(len(canvas), dtype=np.bool_)
        chosen[rows[~free]] = True
        chosen[np.maximum(self.next_decoded(canvas, ask.window, state) - shift, 0)] = True
        if free.any() and not chosen[rows[free]].any():
            chosen[rows[free][0]] = True
        chosen[state.stale] = True
        chosen |= self.most_attended(chosen, state.importance)
        queries = np.flatnonzero(self.fill_gaps(chosen))
        return CachePlan(queries, needs_importance=True), state

    def next_decoded(self, canvas: Canvas, window: tuple[int, int], state: D2CacheState) -> Ints:
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
        prompt = canvas.prompt_length
        density = certainty_density(~canvas.open[prompt:], self.sigma)
        score = confidence * density[near - prompt]
        score = score + np.where(near < end, score.max(), 0.0)
        best: Ints = near[leading(score, self.current_k)]
        return best

    def most_attended(self, chosen: Bools, importance: Floats) -> Bools:
        """Select the most important other positions with the share `rollout_p` in total, at least one."""
        others = np.flatnonzero(~chosen)
        selected = np.zeros(len(chosen), dtype=np.bool_)
        if not len(others):
            return selected
        if self.rollout_p < 1:
            own = importance[others]
            total = float(own.sum())
            most = len(others)
            if total > 1e-9:  # the best m of n have a share of m / n at least
                most = int(self.rollout_p * most) + 2
            order = others[leading(own, most)]
            shares = np.cumsum(importance[order]) / max(total, 1e-9)
            others = order[: max(1, int((shares <= self.rollout_p).sum()))]
        selected[others] = True
        return selected

    def fill_gaps(self, chosen: Bools) -> Bools:
        """Add the positions in gaps of at most `inflate_w`."""
        positions = np.flatnonzero(chosen)
        gaps = np.flatnonzero(np.diff(positions) <= self.inflate_w)
        edges = np.zeros(len(chosen), dtype=np.int64)
        edges[positions[gaps]] += 1
        edges[positions[gaps + 1]] -= 1
        filled: Bools = chosen | (np.cumsum(edges) > 0)
        return filled

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: D2CacheState
    ) -> D2CacheState:
        """Record confidences, importances and edited positions."""
        assert observation.importance is not None, "plans need importances"
        confidence = np.full(len(before), np.nan)
        if len(state.confidence) == len(before):
            confidence = state.confidence.copy()
        reading = observation.reading.undecided(before)
        fresh = np.isnan(confidence[reading.positions]) | (not self.compat)
        confidence[reading.positions[fresh]] = reading.confidence[fresh]
        at = places(before, after)
        exists = at >= 0
        return replace(
            state,
            confidence=np.where(exists, confidence[at], np.nan),
            importance=np.where(exists, observation.importance[at], 0.0),
            stale=np.flatnonzero(edited(before, after)),
        )


CACHE = D2Cache
