"""Autoregressive sampling: a single mask is appended at the end and filled, then the next.

Source: LLaDA, arXiv:2502.09992, Appendix B.4. It equals block diffusion with blocks of one position, and
needs one forward per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.canvas import ModelFacts
from unmask.decoders.base.growing import Growing
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Autoregressive(Growing):
    """Growth by one position per forward."""

    def __post_init__(self) -> None:
        """Reject scores: there is never a choice between positions."""
        if self.score != "confidence" or self.sigma is not None:
            raise ConfigError(
                "score and sigma have no effect on decoder ar: it has one open position"
            )

    def growth(self, gen_length: int, facts: ModelFacts) -> tuple[int, int | None]:
        """Append one position per forward."""
        return 1, None


DECODER = Autoregressive
