"""PC-Sampler: rare tokens before frequent ones, and early positions before late ones.

Source: arXiv:2508.13021, Eq. 3 to 6. The calibrated confidence min(alpha, -p ln f) weights a proposal's
probability p by the surprisal of its token, with frequency f in a background corpus; the weight exp(-lambda
j), with the offset j in the block, orders the positions from left to right. Differs: positions are ranked
by the logarithm, which does not underflow (the published product is 0 for j >= 416 at lambda = 0.25, and
the order then arbitrary).
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.canvas import Floats, Ints, ModelFacts, Reading
from unmask.decoders import Block, Scheduled, Scores, knob
from unmask.errors import ConfigError
from unmask.selection import quota


@dataclass(frozen=True)
class PCSampler(Scheduled):
    """A quota per forward, by calibrated and position-weighted confidence."""

    score: str = knob("pc", "always pc; debias switches its calibration")  # type: ignore[assignment]
    lambd: float = knob(
        0.25,
        "weight positions by exp(-lambd * offset in the block), >= 0; 0: all alike, large: left to right",
    )
    debias: bool = knob(
        True, "calibrate the confidence by token frequencies; false: position weight alone"
    )

    def __post_init__(self) -> None:
        """Reject other scores, and frequencies without effect."""
        if self.score != "pc":
            raise ConfigError(f"score={self.score}: pc_sampler is score=pc; use decoder vanilla")
        if not self.debias and self.frequencies is not None:
            raise ConfigError(f"frequencies={self.frequencies} has no effect with debias=false")

    def _informativeness(self, facts: ModelFacts, reading: Reading) -> Floats:
        """Return the calibrated probability, or p itself without calibration."""
        return super()._informativeness(facts, reading) if self.debias else reading.confidence

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select this forward's quota."""
        return quota(scores.rank, self.quota_of(block))


DECODER = PCSampler
