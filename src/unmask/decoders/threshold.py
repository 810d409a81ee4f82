"""Fast-dLLM's confidence-aware parallel decoding: commit every token that is sure enough.

Source: arXiv:2505.22618, Algorithm 1. The reference has no token-changing quirk here. `block_steps` is the
quota under it of LLaDA2.0 (arXiv:2512.15745) and of SDAR's dynamic remasking (arXiv:2510.06303): when fewer
slots are sure than a schedule of so many forwards a block asks for, the surest are committed. It differs in
that a confidence equal to the threshold passes. `first_alone` is Fast-dLLM v2's (arXiv:2509.26328).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unmask import selection
from unmask.canvas import Canvas, Ints, ModelFacts, Reading
from unmask.decoders import Block, Scores, WholeBlocks, knob
from unmask.decoders._blocks import check_block_steps
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Threshold(WholeBlocks):
    """All slots with confidence >= `threshold`, at least the surest one (or the quota)."""

    threshold: float = knob(
        0.9,
        "confidence to commit, in [0, 1]; 0: the whole block at once, 1: mostly a token a forward",
        tune=(0.5, 0.99),
    )

    block_steps: int | None = knob(
        None,
        "most forwards a block, at least 1: so many at least are committed each; default: no quota but "
        "one, 1: the whole block at once",
    )
    first_alone: bool = knob(
        False,
        "commit the first slot of a block-causal model's block in a forward of its own: in a model with "
        "shifted logits the block before it says it",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be between 0 and 1")
        check_block_steps(self.block_steps)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Also check that the model has blocks where that is needed."""
        if self.first_alone and facts.block_size is None:
            raise ConfigError(
                "first_alone=True has no effect: in this model every slot sees every other; leave it out"
            )
        return super().start(canvas, facts)

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """A block with its least commits, of a whole aligned one or of the slots that are open."""
        block = super().enter(canvas, start, facts)
        if self.block_steps is None:
            return block
        count = len(canvas.open_slots(start, block.end))
        if self.is_aligned(canvas, facts):
            count = self.length_of(canvas, facts)
        quotas = selection.quota_schedule(count, max(1, min(self.block_steps, count)))
        return replace(block, quotas=quotas)

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Algorithm 1's rule, with progress guaranteed."""
        size = block.facts.block_size
        if self.first_alone and size is not None and reading.slots[0] % size == 0:
            return np.zeros(1, dtype=np.int64)
        least = block.quotas[block.step] if block.step < len(block.quotas) else 1
        return selection.threshold(scores.rank, scores.level, self.threshold, least)


DECODER = Threshold
