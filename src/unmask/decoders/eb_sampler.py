"""EB-Sampler: as many tokens per forward as a bound on their shared entropy allows.

Source: arXiv:2505.24857, Eq. 2 and Algorithm 1: commit the longest prefix U, in the order of an error
proxy, with sum over U of H - max over U of H <= gamma, and at least one position. Differs: entropies in
float32 from the log-odds instead of the reference's bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask import selection
from unmask.canvas import Ints, Reading, Stat
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError, ContradictionError


@dataclass(frozen=True)
class EBSampler(Blockwise):
    """Entropy-bounded unmasking."""

    score: Literal["confidence", "margin", "entropy", "pc", "random"] | None = knob(  # type: ignore[assignment]
        None, "error proxy that orders the positions, as in other decoders; default: that of order"
    )
    gamma: float = knob(
        0.1,
        "bound on the shared entropy in nats, >= 0; 0: one token per forward, large: the whole block at "
        "once",
        tune=(0.001, 2.0),
    )
    order: Literal["confidence", "entropy", "margin"] = knob(
        "entropy", "the paper's name for the error proxy; the most confident positions come first"
    )

    def __post_init__(self) -> None:
        """Check the range, and that order and score agree."""
        if not self.gamma >= 0:
            raise ConfigError(f"gamma={self.gamma} must be a number, at least 0")
        if self.score is not None and self.order not in ("entropy", self.score):
            raise ContradictionError("order", f"order={self.order}", f"score={self.score}")

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the block length and the score."""
        return super().defaults(gen_length, block_size) | {"score": self.order}

    @property
    def effective_score(self) -> str:
        """The error proxy."""
        return self.order if self.score is None else self.score

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics of the error proxy, and the entropy for the bound."""
        return self.score_stats | {"entropy"}

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select the prefix of Eq. 2, at least one position."""
        return selection.entropy_budget(scores.rank, reading.stats["entropy"], self.gamma)


DECODER = EBSampler
