"""dInfer's hierarchical decoding: split each run of masks by committing its most confident position.

Source: dInfer, arXiv:2510.08666, hierarchical decoding: commit the most confident position of every maximal
run of open positions if it exceeds `low_threshold`, every position above `threshold`, and the most
confident one of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask import selection
from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Hierarchy(Blockwise):
    """Divide and conquer on runs of masks."""

    threshold: float = knob(
        0.9,
        "confidence above which any position is committed, in [0, 1]; 0: the whole block at once, 1: only "
        "the best of each run",
        tune=(0.5, 0.99),
    )
    low_threshold: float = knob(
        0.4,
        "confidence above which the most confident position of a run is committed, in [0, threshold]; 0: "
        "in every run, at threshold: no effect",
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
        """Select the best position of each run, all above the threshold, and the best of all."""
        return selection.run_argmax(
            reading.positions, scores.rank, scores.level, self.low_threshold, self.threshold
        )


DECODER = Hierarchy
