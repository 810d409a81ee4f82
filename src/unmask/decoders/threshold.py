"""Fast-dLLM's confidence-aware parallel decoding: commit every token above a confidence threshold.

Source: arXiv:2505.22618, Algorithm 1. The reference code has no quirk that changes tokens. `block_steps` is
the minimum quota of LLaDA2.0 (arXiv:2512.15745) and of SDAR's dynamic remasking (arXiv:2510.06303): when
fewer positions pass the threshold than a schedule of `block_steps` forwards per block requires, the most
confident ones are committed. `first_alone` is a rule of Fast-dLLM v2 (arXiv:2509.26328). In Fast-dLLM a
confidence equal to the threshold passes, in those three it does not (`comparator`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unmask import selection
from unmask.canvas import Canvas, Ints, ModelFacts, Reading
from unmask.decoders import Block, Scores, WholeBlocks, knob
from unmask.decoders.base.blockwise import check_block_steps
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Threshold(WholeBlocks):
    """All positions whose confidence reaches `threshold`, at least one (or the quota)."""

    threshold: float = knob(
        0.9,
        "confidence from which a token is committed, in [0, 1]; 0: the whole block at once, 1: mostly one "
        "token per forward",
        tune=(0.5, 0.99),
    )
    comparator: Literal["ge", "gt"] = knob(
        "ge", "ge: a confidence equal to the threshold passes; gt: it does not (matters at 1)"
    )
    block_steps: int | None = knob(
        None,
        "maximum forwards per block, at least 1: each commits at least an equal share of the block; 1: the "
        "whole block at once; default: no limit, at least one token per forward",
    )
    minimal_topk: int | None = knob(
        None,
        "with block_steps: limit the forwards of a block to gen_length // minimal_topk as well, so that "
        "short answers commit more per forward, at least 1; 1: mildest, large: the whole block at once; "
        "default: no such limit",
    )
    first_alone: bool = knob(
        False,
        "block-causal models: commit the first position of each block in a forward of its own, since with "
        "shifted logits it is predicted from the block before",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} must be between 0 and 1")
        check_block_steps(self.block_steps)
        if self.minimal_topk is None:
            return
        if self.minimal_topk < 1:
            raise ConfigError(f"minimal_topk={self.minimal_topk} must be at least 1 (or null)")
        if self.block_steps is None:
            raise ConfigError(
                f"minimal_topk={self.minimal_topk} has no effect without block_steps; leave it out"
            )

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the canvas, and that the model has blocks where `first_alone` requires them."""
        if self.first_alone and facts.block_size is None:
            raise ConfigError(
                "first_alone=True has no effect: this model has full attention, not blocks; leave "
                "it out"
            )
        return self.scheduled(canvas, super().start(canvas, facts))

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the block after a full one."""
        return self.scheduled(canvas, super().next_block(canvas, state))

    def scheduled(self, canvas: Canvas, block: Block) -> Block:
        """Return a block with minimum quotas, for its open positions or, if aligned, a whole block."""
        steps = self.block_steps
        if steps is None:
            return block
        if self.minimal_topk is not None:
            end = len(canvas) if block.limit is None else block.limit
            steps = min(steps, (end - canvas.prompt_length) // self.minimal_topk)
        count = len(canvas.open_positions(block.start, block.end))
        if self.is_aligned(canvas, block.facts):
            count = self.length_of(canvas, block.facts)
        quotas = selection.quota_schedule(count, max(1, min(steps, count)))
        return replace(block, quotas=quotas)

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select by Algorithm 1, at least one position."""
        size = block.facts.block_size
        if self.first_alone and size is not None and reading.positions[0] % size == 0:
            return np.zeros(1, dtype=np.int64)
        least = block.quotas[block.step] if block.step < len(block.quotas) else 1
        strict = self.comparator == "gt"
        return selection.threshold(scores.rank, scores.level, self.threshold, least, strict=strict)


DECODER = Threshold
