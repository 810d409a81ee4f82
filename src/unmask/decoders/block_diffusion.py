"""Block diffusion sampling: whole blocks are appended one after another, each denoised when it is there.

Source: LLaDA, arXiv:2502.09992, Appendix B.4; BD3-LM, arXiv:2503.09573. Unlike decoder vanilla with
blocks, masks of later blocks do not exist, so the canvas is as short as it can be. Blocks of one position
are autoregressive sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.decoders import knob
from unmask.decoders.base.growing import Growing
from unmask.errors import ConfigError


@dataclass(frozen=True)
class BlockDiffusion(Growing):
    """The answer grows by `block_length` masks."""

    block_length: int | None = knob(
        None,
        "positions to grow by, 1 (autoregressive) to gen_length; default: 32, or gen_length if less",
    )
    steps: int | None = knob(
        None,
        "forwards in all, a multiple of the number of blocks; default: gen_length (a token each)",
    )

    def growth(self, gen_length: int) -> tuple[int, int | None]:
        """Check the knobs. The last block may be shorter."""
        length = min(32, gen_length) if self.block_length is None else self.block_length
        if not 1 <= length <= gen_length:
            raise ConfigError(
                f"block_length={length} must be between 1 and gen_length={gen_length}"
            )
        blocks = -(-gen_length // length)
        if self.steps is None:
            return length, None
        if self.steps < 1 or self.steps % blocks:
            raise ConfigError(
                f"steps={self.steps} cannot be split over {blocks} blocks (gen_length={gen_length}, "
                f"block_length={length}); use a positive multiple of {blocks}"
            )
        return length, self.steps // blocks


DECODER = BlockDiffusion
