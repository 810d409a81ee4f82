"""PC-Sampler: rare tokens before frequent ones, and early positions before late ones.

Source: arXiv:2508.13021, Eq. 3 to 6. The calibrated confidence min(alpha, -p ln f) weights a proposal's
probability p by the surprisal of its token, with frequency f in a background corpus; the weight exp(-lambda
j), with the offset j in the block, orders the positions from left to right. With lambda = 0, all positions
at the bound alpha are tied, as a rule, not by chance; the equations leave their order open, and they are
taken in the published code's, that of `torch.topk` over the block. Differs: positions are ranked by the
logarithm, which does not underflow (the published product is 0 for j >= 416 at lambda = 0.25, and the order
then arbitrary).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from unmask.canvas import Floats, Ints, ModelFacts, Reading
from unmask.decoders import Block, Scheduled, Scores, knob
from unmask.errors import ConfigError
from unmask.selection import quota, topk_order

ROUNDING = 1e-9
"""Scores this close to the bound have reached it."""


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
        """Select this forward's quota; of more positions at the bound, those that the code takes."""
        count, bound = self.quota_of(block), log(self.clip_alpha)
        tied = scores.rank > bound - ROUNDING
        is_inside = reading.positions[0] >= block.start
        if not self.debias or self.lambd > 0 or tied.sum() <= count or not is_inside:
            return quota(scores.rank, count)
        ranks = np.full(block.end - block.start, -np.inf)  # decided positions have no score
        ranks[reading.positions - block.start] = np.where(tied, bound, scores.rank)
        chosen = topk_order(ranks, count) + block.start
        return np.searchsorted(reading.positions, chosen)


DECODER = PCSampler
