"""Fast-dLLM's factor rule: the more tokens at once, the more confident each must be.

Source: arXiv:2505.22618, Theorem 1: commit the n most confident positions, for the largest n with
(n + 1)(1 - c_(n)) < factor, where c_(n) is the n-th confidence in descending order. Differs: the published
loop is off by one at the last rank; `compat=True` reproduces it.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask import selection
from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Factor(Blockwise):
    """The longest run of descending confidences within the factor bound, at least one."""

    factor: float = knob(
        1.0,
        "bound on (n + 1)(1 - c_(n)), >= 0; 0: one token per forward, large: the whole block at once",
        tune=(0.1, 4.0),
    )

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.factor >= 0:
            raise ConfigError(f"factor={self.factor} must be a number, at least 0")

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select the longest run within the bound, at least one position."""
        return selection.factor(scores.rank, scores.doubt, self.factor, compat=self.compat)


DECODER = Factor
