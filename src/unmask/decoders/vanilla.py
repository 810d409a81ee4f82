"""LLaDA's own sampler: in each block, a fixed number of tokens a forward, the surest first.

Source: arXiv:2502.09992, Algorithms 4 and 5 (random and low-confidence remasking). Differs: a forward
whose quota is 0 (more steps than slots) is not made; ties go to the lowest slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Scheduled, Scores, knob
from unmask.errors import ConfigError
from unmask.selection import quota


@dataclass(frozen=True)
class Vanilla(Scheduled):
    """A quota a forward, by score or at random."""

    STANDS_FOR: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "threshold": ("threshold", {}),
        "factor": ("factor", {}),
        "gamma": ("eb_sampler", {"order": "confidence"}),
        "debias": ("pc_sampler", {"lambd": 0.0}),
    }
    """Knobs that the founding documents write on it, the method each names, and its other knobs."""

    remasking: Literal["low_confidence", "random"] = knob(
        "low_confidence", "keep the surest tokens, or random ones"
    )

    def __post_init__(self) -> None:
        """Reject a random order by two names that contradict."""
        if self.remasking == "random" and self.score != "confidence":
            raise ConfigError(f"remasking=random leaves score={self.score} without effect")

    @property
    def effective_score(self) -> str:
        """Random remasking is the random score."""
        return "random" if self.remasking == "random" else self.score

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """This forward's quota."""
        return quota(scores.rank, self.quota_of(block))


DECODER = Vanilla
