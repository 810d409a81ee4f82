"""Block diffusion sampling: blocks are appended one after another, and each is denoised before the next.

Source: LLaDA, arXiv:2502.09992, Appendix B.4; BD3-LM, arXiv:2503.09573. Unlike in decoder vanilla
with blocks, the masks of later blocks do not exist yet, so the canvas is as short as possible. Blocks of
one position are autoregressive sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.decoders import knob
from unmask.decoders.base.growing import Growing
from unmask.errors import ConfigError


@dataclass(frozen=True)
class BlockDiffusion(Growing):
    """Growth by blocks of `block_length` masks."""

    block_length: int | None = knob(
        None,
        "positions per block; 1: autoregressive, gen_length: a single block; default: 32, or gen_length if "
        "that is less",
    )
    steps: int | None = knob(
        None,
        "total forwards, a multiple of the number of blocks; few: many tokens per forward; default: "
        "gen_length (one token per forward)",
    )

    def growth(self, gen_length: int) -> tuple[int, int | None]:
        """Check the knobs; return the block length and the forwards per block (the last may be shorter)."""
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
