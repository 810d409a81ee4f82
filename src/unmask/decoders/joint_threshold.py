"""JointThreshold: each forward commits masked positions and edits decided ones.

Source: LLaDA2.1, arXiv:2602.08676, and SGLang's JointThreshold. Every forward of a block commits the open
positions with confidence above `threshold` (at least the most confident one), and replaces decided tokens
where another token has probability above `edit_threshold`. The block ends after a forward without open
positions and without changes, or after `max_post_edit_steps` forwards without open positions. The penalty
looks no further left than the block's first position; where the left neighbor is open, its token is the
mask. Differs: a token is never replaced by the mask; after `max_post_edit_steps` the block ends at once (in
SGLang, with a forward that only stores keys).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask import selection
from unmask.canvas import Ask, Bias, Canvas, Edit, Ints, ModelFacts, Reading
from unmask.decoders import Block, WholeBlocks, knob
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Editing:
    """Number of the block's forwards without open positions, and a flag for its end."""

    num_post: int = 0
    is_over: bool = False


@dataclass(frozen=True)
class JointThreshold(WholeBlocks):
    """Threshold decoding with editing."""

    revises: ClassVar[bool] = True

    threshold: float = knob(
        0.9,
        "confidence above which a token is committed, in [0, 1]; 0: the whole block at once, 1: one token "
        "per forward",
        tune=(0.5, 0.99),
    )
    edit_threshold: float = knob(
        0.9,
        "probability above which another token replaces a decided one, in [0, 1]; 0: always, 1: never",
        tune=(0.5, 0.99),
    )
    max_post_edit_steps: int = knob(
        16,
        "maximum forwards of a block after its last mask is filled, at least 0; 0: none, large: until "
        "nothing changes",
    )
    penalty_lambda: float = knob(
        0.0,
        "amount subtracted from the logit of the left neighbor's token in the block, >= 0; 0: none, large: "
        "no token twice in a row within a block",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("threshold", "edit_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.max_post_edit_steps < 0:
            raise ConfigError(f"max_post_edit_steps={self.max_post_edit_steps} must be at least 0")
        if not self.penalty_lambda >= 0:
            raise ConfigError(f"penalty_lambda={self.penalty_lambda} must be at least 0")

    def max_forwards(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return one forward per position plus, per block, the edits and one forward without a change."""
        size = self.max_positions(canvas, facts) - canvas.prompt_length
        return size + self.num_blocks(canvas, facts) * (self.max_post_edit_steps + 1)

    def num_settled(self, canvas: Canvas, state: Block) -> int:
        """Return the number of settled positions: those of blocks that have ended."""
        settled = state.end if self.editing(state).is_over else state.start
        return min(settled, len(canvas))  # the canvas is cut at the end of the answer

    @staticmethod
    def editing(state: Block) -> Editing:
        """Return the editing state of the block."""
        return state.memory if isinstance(state.memory, Editing) else Editing()

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the next block with a new editing state."""
        return replace(super().next_block(canvas, state), memory=None)

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Ask for all positions of the block that are not fixed."""
        rows = self.rows(canvas, state)
        while self.editing(state).is_over or not len(rows):
            state = self.next_block(canvas, state)
            rows = self.rows(canvas, state)
        window = (min(state.start, int(rows[0])), state.end)
        ask = Ask(rows, window, stats=self.stats)
        if self.penalty_lambda > 0:
            inside = rows[rows > self.first_position(canvas, state)]
            values = np.full(len(inside), -self.penalty_lambda)
            ask = replace(ask, bias=Bias(inside, canvas.tokens[inside - 1], values))
        return ask, state

    def first_position(self, canvas: Canvas, state: Block) -> int:
        """Return the first position of the block, of which the prompt may occupy the beginning."""
        if not self.is_aligned(canvas, state.facts):
            return state.start
        length = self.length_of(canvas, state.facts)
        return state.start // length * length

    @staticmethod
    def rows(canvas: Canvas, state: Block) -> Ints:
        """Return the open positions left of the block's end, and the decided ones in the block."""
        positions = np.arange(state.end)
        inside = (positions >= state.start) & ~canvas.fixed[: state.end]
        rows: Ints = positions[canvas.open[: state.end] | inside]
        return rows

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit and edit; end the block if nothing is left to do."""
        editing = self.editing(state)
        masked = reading.undecided(canvas, end=state.end)
        edit = Edit()
        if len(masked.positions):
            scores = self.scores(canvas, state.facts, state.start, masked)
            sure: Ints = np.flatnonzero(scores.level > self.threshold)
            edit = masked.commit(sure if len(sure) else selection.ranking(scores.rank)[:1])
        else:
            editing = replace(editing, num_post=editing.num_post + 1)
        decided = ~canvas.open[reading.positions]
        wrong = decided & (reading.tokens != canvas.tokens[reading.positions])
        wrong &= reading.confidence > self.edit_threshold
        edit = replace(edit, replace=reading.positions[wrong], replace_tokens=reading.tokens[wrong])
        still_open = len(masked.positions) - len(edit.commit)
        exhausted = editing.num_post >= self.max_post_edit_steps
        unchanged = not len(masked.positions) and not wrong.any()
        if still_open == 0 and (unchanged or exhausted):
            editing = replace(editing, is_over=True)
            edit = self.cut(canvas, state, edit)
        return edit, replace(state, step=state.step + 1, memory=editing)


DECODER = JointThreshold
