"""KLASS: commit positions that are confident and whose distribution has become stable.

Source: arXiv:2511.05664, Algorithm 1. A position is ready when its last `kl_history_length` divergences
between consecutive forwards are all below `kl_threshold`, its confidence is above `threshold`, and the
block has had enough forwards. All ready positions are committed; if there are none, the schedule's quota by
confidence. Differs: where a cache did not compute a position in the previous forward, its history starts
again; decoding continues until the block is full (the published loop can leave masks); the threshold
defaults to a value of the paper's range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask.canvas import Ask, Canvas, Edit, Ints, Reading, Stat
from unmask.decoders import Block, Scheduled, Scores, knob
from unmask.errors import ConfigError
from unmask.selection import quota


@dataclass(frozen=True)
class Klass(Scheduled):
    """All stable and confident positions, or the quota."""

    compares_forwards: ClassVar[bool] = True

    threshold: float = knob(
        0.9,
        "confidence above which a stable position is committed, in [0, 1]; 0: always, 1: never; the paper "
        "uses 0.6 to 0.9",
        tune=(0.5, 0.95),
    )
    kl_threshold: float = knob(
        0.01,
        "divergence in nats below which a forward counts as stable, > 0; tiny: none, large: all, so that "
        "confidence alone decides",
        tune=(0.001, 0.1),
    )
    kl_history_length: int = knob(
        2,
        "number of consecutive stable forwards that is required, at least 1; 1: one, large: never stable",
        tune=(1, 4),
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be between 0 and 1")
        if not self.kl_threshold > 0:
            raise ConfigError(f"kl_threshold={self.kl_threshold} must be greater than 0")
        if self.kl_history_length < 1:
            raise ConfigError(f"kl_history_length={self.kl_history_length} must be at least 1")

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics of the score, and the divergences."""
        return self.score_stats | {"kl"}

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Ask for the next block too, where it is computed, so that its histories start early."""
        ask, state = super().ask(canvas, state)
        following = canvas.open_positions(state.end, min(2 * state.end - state.start, len(canvas)))
        return replace(ask, optional=following), state

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Count each position's stable forwards in a row, then select.

        A divergence that is not below the threshold, such as the infinite one of a position that was not
        read before, starts the count again: the last n are all below it where the count is at least n.
        """
        uids, is_below = canvas.uid[reading.positions], reading.stats["kl"] < self.kl_threshold
        runs = np.zeros(canvas.next_uid, dtype=np.int64)
        if isinstance(state.memory, np.ndarray):
            past = uids[uids < len(state.memory)]
            runs[past] = state.memory[past]
        runs[uids] = np.where(is_below, runs[uids] + 1, 0)
        run = runs[uids]
        marked = replace(reading, stats={**reading.stats, "run": run.astype(np.float64)})
        return super().step(canvas, replace(state, memory=runs), marked)

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select all stable and confident positions, else the quota."""
        if block.step >= self.kl_history_length - 1:
            is_stable = reading.stats["run"] >= self.kl_history_length
            ready = is_stable & (scores.level > self.threshold)
            if ready.any():
                chosen: Ints = np.flatnonzero(ready)
                return chosen
        return quota(scores.rank, self.quota_of(block))


DECODER = Klass
