"""Fast-dLLM's confidence-aware parallel decoding: commit every token that is sure enough.

Source: arXiv:2505.22618, Algorithm 1. The reference has no token-changing quirk here.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask import selection
from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Threshold(Blockwise):
    """All slots with confidence >= `threshold`, at least the surest one."""

    threshold: float = knob(
        0.9,
        "confidence to commit, in [0, 1]; 0: the whole block at once, 1: mostly a token a forward",
    )

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be between 0 and 1")

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Eq. 1 of the rule, with progress guaranteed."""
        return selection.threshold(scores.rank, scores.level, self.threshold)


DECODER = Threshold
