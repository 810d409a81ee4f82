"""A canvas of whole blocks, as in the samplers of block-causal families, cut to the answer at the end.

Source: `generate` of LLaDA2.0 (arXiv:2512.15745), LLaDA2.1 (arXiv:2602.08676) and SDAR (arXiv:2510.06303).
Differs: decoding ends when the answer is full; they also fill the surplus, which cannot change the answer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from unmask.canvas import Canvas, Edit, ModelFacts, Reading, apply_checked
from unmask.decoders.base.blockwise import Block, Blockwise
from unmask.errors import ConfigError
from unmask.knobs import knob


@dataclass(frozen=True)
class WholeBlocks(Blockwise):
    """Blocks of which the last one may reach beyond the answer."""

    whole_blocks: bool = knob(
        False,
        "block-causal models: extend the canvas to a whole number of blocks; the surplus positions are "
        "decoded too and removed at the end; an infill keeps its length; false: the last block ends with "
        "gen_length",
    )

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return a canvas with the surplus positions appended."""
        surplus = self._surplus(canvas, facts)
        if not surplus:
            return canvas
        return apply_checked(canvas, Edit(insert=((len(canvas), surplus),)), -1)

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the length of `first_canvas`; no positions are added later."""
        return len(canvas) + self._surplus(canvas, facts)

    def _surplus(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the number of positions to add, limited by the context."""
        if not self.whole_blocks or facts.block_size is None or canvas.infilling:
            return 0
        return max(0, min(-len(canvas) % facts.block_size, facts.max_length - len(canvas)))

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Enter the first block; the answer ends where the request's canvas does."""
        if self.whole_blocks and facts.block_size is None and not canvas.infilling:
            raise ConfigError(
                "whole_blocks=True has no effect: this model has no blocks; use whole_blocks=false"
            )
        block = super().start(canvas, facts)
        if not self.whole_blocks or canvas.infilling:
            return block
        block = self.enter(self.first_canvas(canvas, facts), block.start, facts)
        return dataclasses.replace(block, limit=len(canvas))

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the positions that the rule selects; delete the surplus when the answer is full."""
        edit, after = super().step(canvas, state, reading)
        return self.cut(canvas, after, edit), after

    @staticmethod
    def cut(canvas: Canvas, state: Block, edit: Edit) -> Edit:
        """Return the edit, with the surplus deleted if it fills the answer."""
        if state.limit is None or len(canvas) <= state.limit:
            return edit
        if not np.isin(canvas.open_positions(0, state.limit), edit.commit).all():
            return edit
        commits, replaces = edit.commit < state.limit, edit.replace < state.limit
        return dataclasses.replace(
            edit,
            commit=edit.commit[commits],
            tokens=edit.tokens[commits],
            confidence=edit.confidence[commits],
            replace=edit.replace[replaces],
            replace_tokens=edit.replace_tokens[replaces],
            delete=np.arange(state.limit, len(canvas)),
        )
