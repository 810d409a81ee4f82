"""LLaDA's own sampler: in each block, a fixed number of tokens a forward, the surest first.

Source: arXiv:2502.09992, Algorithms 4 and 5 (random and low-confidence remasking). Differs: a forward
whose quota is 0 (more steps than slots) is not made; ties go to the lowest slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unmask.canvas import Canvas, Ints, ModelFacts, Reading
from unmask.decoders import Block, Blockwise, knob
from unmask.errors import ConfigError
from unmask.selection import quota, quota_schedule


@dataclass(frozen=True)
class Vanilla(Blockwise):
    """`steps` forwards over the whole generation, split evenly over the blocks."""

    steps: int | None = knob(
        None, "forwards in all, number of blocks to gen_length; default: gen_length (a token each)"
    )
    remasking: Literal["low_confidence", "random"] = knob(
        "low_confidence", "keep the surest tokens, or random ones"
    )

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Also check that `steps` can be split."""
        size = len(canvas) - canvas.prompt_length
        block = super().start(canvas, facts)
        length = self.length_of(canvas)
        blocks = -(-size // length)
        if self.steps is not None and (self.steps < 1 or self.steps % blocks):
            raise ConfigError(
                f"steps={self.steps} cannot be split over {blocks} blocks (gen_length={size}, "
                f"block_length={length}); use a positive multiple of {blocks}"
            )
        return block

    def enter(self, canvas: Canvas, start: int) -> Block:
        """A block with its quotas, set by the slots that are open when it begins."""
        block = super().enter(canvas, start)
        num_open = len(canvas.open_slots(start, block.end))
        blocks = -(-(len(canvas) - canvas.prompt_length) // self.length_of(canvas))
        steps = num_open if self.steps is None else self.steps // blocks
        return replace(block, quotas=quota_schedule(num_open, max(1, min(steps, num_open))))

    def select(self, reading: Reading, block: Block) -> Ints:
        """This forward's quota, by confidence or at random."""
        score = reading.uniform if self.remasking == "random" else reading.log_odds
        k = block.quotas[block.step] if block.step < len(block.quotas) else 1
        return quota(score, k)


DECODER = Vanilla
