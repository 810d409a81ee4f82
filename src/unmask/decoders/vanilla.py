"""LLaDA's sampler: a fixed number of tokens per forward in each block, the most confident first.

Source: arXiv:2502.09992, Algorithms 4 and 5 (random and low-confidence remasking); SDAR, arXiv:2510.06303,
for the sequential order. Differs: forwards with quota 0 (more steps than positions) are skipped; of equal
scores, the lowest position comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Scheduled, Scores, WholeBlocks, knob
from unmask.errors import ConfigError
from unmask.selection import quota


@dataclass(frozen=True)
class Vanilla(WholeBlocks, Scheduled):
    """A quota per forward, by score, at random or from left to right."""

    remasking: Literal["low_confidence", "random", "sequential"] = knob(
        "low_confidence",
        "tokens to commit first: the most confident (low_confidence), random ones (random) or the leftmost "
        "(sequential)",
    )

    def __post_init__(self) -> None:
        """Reject a score that remasking overrides."""
        if self.remasking == "low_confidence":
            return
        if self.score != "confidence":
            raise ConfigError(
                f"remasking={self.remasking} leaves score={self.score} without effect; give one of them"
            )
        if self.remasking == "sequential" and self.sigma is not None:
            raise ConfigError(
                f"remasking=sequential leaves sigma={self.sigma} without effect; give one of them"
            )

    @property
    def effective_score(self) -> str:
        """Name of the score, or of the remasking that replaces it."""
        return self.score if self.remasking == "low_confidence" else self.remasking

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select the forward's quota."""
        return quota(scores.rank, self.quota_of(block))


DECODER = Vanilla
