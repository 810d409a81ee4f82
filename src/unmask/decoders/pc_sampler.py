"""PC-Sampler: surprising words first, and early places before late ones.

Source: arXiv:2508.13021, Eq. 3 to 6. The calibrated confidence min(alpha, -p ln f) weighs a proposal's
probability by how rare its token is in a background corpus; exp(-lambda j) with the offset j in the block
steers the global trajectory. Differs: ranked by the logarithm, so that the weight never underflows (the
published product is 0 from j = 416 on at lambda = 0.25 and its order then arbitrary).
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.canvas import Floats, Ints, ModelFacts, Reading
from unmask.decoders import Block, Scheduled, Scores, knob
from unmask.errors import ConfigError
from unmask.selection import quota


@dataclass(frozen=True)
class PCSampler(Scheduled):
    """A quota a forward, by calibrated and position-weighted confidence."""

    score: str = knob("pc", "always pc; the calibration is switched by debias")  # type: ignore[assignment]
    lambd: float = knob(
        0.25, "weight exp(-lambd * offset in the block), >= 0; 0: none, large: left to right"
    )
    debias: bool = knob(True, "false: plain confidence, with the position weight alone")

    def __post_init__(self) -> None:
        """Reject another score: that is another method."""
        if self.score != "pc":
            raise ConfigError(f"score={self.score}: pc_sampler is score=pc; use decoder vanilla")
        if not self.debias and self.frequencies is not None:
            raise ConfigError(f"frequencies={self.frequencies} has no effect with debias=false")

    def _informativeness(self, facts: ModelFacts, reading: Reading) -> Floats:
        """Return p itself without calibration."""
        return super()._informativeness(facts, reading) if self.debias else reading.confidence

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select this forward's quota."""
        return quota(scores.rank, self.quota_of(block))


DECODER = PCSampler
