"""Autoregressive sampling: one mask at the end, filled, then the next.

Source: LLaDA, arXiv:2502.09992, Appendix B.4. The slowest and the most familiar order; it is block
diffusion with blocks of one position.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.decoders.base.growing import Growing
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Autoregressive(Growing):
    """The answer grows by a position."""

    def __post_init__(self) -> None:
        """Refuse scores: there is never a choice between positions."""
        if self.score != "confidence" or self.sigma is not None:
            raise ConfigError(
                "score and sigma have no effect on decoder ar: it has one open position"
            )

    def growth(self, gen_length: int) -> tuple[int, int | None]:
        """Append one position per forward."""
        return 1, 1


DECODER = Autoregressive
