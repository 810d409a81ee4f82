"""Block diffusion sampling: blocks are appended one after another, and each is denoised before the next.

Source: LLaDA, arXiv:2502.09992, Appendix B.4; BD3-LM, arXiv:2503.09573. Unlike in decoder vanilla
with blocks, the masks of later blocks do not exist yet, so the canvas is as short as possible. Blocks of
one position are autoregressive sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.canvas import ModelFacts
from unmask.decoders import knob
from unmask.decoders.base.blockwise import check_steps
from unmask.decoders.base.growing import Growing
from unmask.errors import ConfigError

BLOCK_LENGTH = 32


@dataclass(frozen=True)
class BlockDiffusion(Growing):
    """Growth by blocks of `block_length` masks."""

    block_length: int | None = knob(
        None,
        "positions per block, at least 1; 1: autoregressive, gen_length: a single block; the last "
        "one ends with the "
        "answer; default: 32",
    )
    steps: int | None = knob(
        None,
        "total forwards, at least 1, a multiple of the number of blocks if block_length is given too; "
        "few: many tokens "
        "per forward; default: gen_length (one token per forward)",
    )

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the block length, which leaves each block a forward of given `steps`, and the steps."""
        shared = -(-gen_length // max(1, self.steps or gen_length))
        return {"block_length": min(max(BLOCK_LENGTH, shared), gen_length), "steps": gen_length}

    def growth(self, gen_length: int, facts: ModelFacts) -> tuple[int, int | None]:
        """Check the knobs; return the block length and the number of forwards."""
        has_steps = self.steps is not None and "steps" not in facts.adaptable
        length = BLOCK_LENGTH if self.block_length is None else self.block_length
        if length < 1:
            raise ConfigError(f"block_length={length} must be at least 1")
        is_given = self.block_length is not None and "block_length" not in facts.adaptable
        if has_steps and not is_given:
            length = max(length, -(-gen_length // max(1, self.steps or 1)))
        length = min(length, gen_length)
        if self.steps is None:
            return length, None
        blocks = -(-gen_length // length)
        if has_steps or self.steps < 1:
            check_steps(self.steps, blocks, gen_length, length, is_even=is_given)
        return length, max(self.steps, blocks)


DECODER = BlockDiffusion
