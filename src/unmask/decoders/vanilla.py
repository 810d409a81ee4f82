"""LLaDA's own sampler: in each block, a fixed number of tokens a forward, the surest first.

Source: arXiv:2502.09992, Algorithms 4 and 5 (random and low-confidence remasking); SDAR, arXiv:2510.06303,
for the sequential order. Differs: a forward whose quota is 0 (more steps than positions) is not made; ties
go to the lowest position.
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
    """A quota a forward, by score, at random or from the left."""

    remasking: Literal["low_confidence", "random", "sequential"] = knob(
        "low_confidence", "keep the surest tokens, random ones, or the leftmost (sequential)"
    )

    def __post_init__(self) -> None:
        """Reject an order by two names that contradict."""
        if self.remasking == "low_confidence":
            return
        if self.score != "confidence":
            raise ConfigError(
                f"remasking={self.remasking} leaves score={self.score} without effect"
            )
        if self.remasking == "sequential" and self.sigma is not None:
            raise ConfigError(f"remasking=sequential leaves sigma={self.sigma} without effect")

    @property
    def effective_score(self) -> str:
        """Other remasking is a score of its own."""
        return self.score if self.remasking == "low_confidence" else self.remasking

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select this forward's quota."""
        return quota(scores.rank, self.quota_of(block))


DECODER = Vanilla
