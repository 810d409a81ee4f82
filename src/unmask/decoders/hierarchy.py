"""dInfer's hierarchical decoding: split each run of masks by committing its surest position.

Source: dInfer, arXiv:2510.08666, hierarchical decoding: the surest position of every maximal run of open
positions if it exceeds `low_threshold`, every position above `threshold`, and the surest of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask import selection
from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Hierarchy(Blockwise):
    """Divide and conquer over the runs of masks."""

    threshold: float = knob(
        0.9, "confidence above which any position is committed, in [0, 1]", tune=(0.5, 0.99)
    )
    low_threshold: float = knob(
        0.4,
        "confidence above which a run's surest position is committed; at most threshold",
        tune=(0.1, 0.5),
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.low_threshold <= self.threshold <= 1:
            raise ConfigError(
                f"low_threshold={self.low_threshold}, threshold={self.threshold}: use "
                f"0 <= low_threshold <= threshold <= 1"
            )

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select the best of each run, all above the threshold, and the best of all."""
        return selection.run_argmax(
            reading.positions, scores.rank, scores.level, self.low_threshold, self.threshold
        )


DECODER = Hierarchy
