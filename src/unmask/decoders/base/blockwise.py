"""Semi-autoregressive decoding: blocks from left to right, a selection rule within each.

In a block-causal model the blocks are counted from the prompt's first token, like the blocks of the model:
each ends at a multiple of the block length, so the prompt may occupy the beginning of the first one.

Source: LLaDA, arXiv:2502.09992, Appendix B.4; for block-causal models LLaDA2.0, arXiv:2512.15745, and SDAR,
arXiv:2510.06303.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from unmask.canvas import Ask, Canvas, Edit, Ints, ModelFacts, Reading
from unmask.decoders.base.protocol import Decoder
from unmask.decoders.base.scoring import Scores, Scoring
from unmask.errors import ConfigError
from unmask.knobs import knob
from unmask.selection import quota_schedule


@dataclass(frozen=True, slots=True)
class Block:
    """The running block `[start, end)`, after `step` forwards, with the `quotas` of its forwards.

    `memory` is the state of the method itself. It passes from block to block, and so does `limit`:
    positions from there on are not part of the answer (None: all are).
    """

    start: int
    end: int
    facts: ModelFacts
    step: int = 0
    quotas: tuple[int, ...] = ()
    memory: object = None
    limit: int | None = None


@dataclass(frozen=True)
class Blockwise(Scoring, Decoder[Block]):
    """Fixed blocks from left to right; `select` chooses the positions to commit.

    All open positions left of the block's end are eligible.
    """

    block_length: int | None = knob(
        None,
        "positions per block; 1: left to right, gen_length: any order; the last one ends with the answer; "
        "default: the largest divisor in 8..32, else gen_length; for infilling, the whole text; for "
        "block-causal models, the model's own block",
    )

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Return the indices of the reading to commit; it holds the eligible positions, at least one."""
        raise NotImplementedError(f"decoder {self.name!r} defines neither select nor step")

    @staticmethod
    def is_aligned(canvas: Canvas, facts: ModelFacts) -> bool:
        """Return True if blocks are counted from the prompt's first token."""
        return facts.block_size is not None and not canvas.infilling

    def length_of(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the block length: the knob, or its default for this canvas."""
        if self.block_length is not None:
            return self.block_length
        size = len(canvas) - canvas.prompt_length
        if canvas.infilling:
            return size
        if facts.block_size is not None:
            return facts.block_size
        divisors = [n for n in range(8, 33) if size % n == 0]
        return divisors[-1] if divisors else size

    def num_blocks(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the number of blocks of the answer."""
        length = self.length_of(canvas, facts)
        first = canvas.prompt_length // length * length
        start = first if self.is_aligned(canvas, facts) else canvas.prompt_length
        return -(-(len(canvas) - start) // length)

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """Return the state of the block at `start`."""
        length = self.length_of(canvas, facts)
        aligned = self.is_aligned(canvas, facts)
        end = (start // length + 1) * length if aligned else start + length
        return Block(start, min(end, len(canvas)), facts)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the knobs and enter the first block; the last one ends with the answer."""
        self.check_scores(facts)
        length = self.length_of(canvas, facts)
        if length < 1:
            raise ConfigError(f"block_length={length} must be at least 1")
        return self.enter(canvas, canvas.prompt_length, facts)

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Ask for every open position before the block's end; skip full blocks."""
        rows = canvas.open_positions(0, state.end)
        while len(rows) == 0:
            state = self.next_block(canvas, state)
            rows = canvas.open_positions(0, state.end)
        window = (min(state.start, int(rows[0])), state.end)
        return Ask(rows, window, stats=self.stats), state

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the block after a full one."""
        block = self.enter(canvas, state.end, state.facts)
        return dataclasses.replace(block, memory=state.memory, limit=state.limit)

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the positions that the rule selects."""
        after = dataclasses.replace(state, step=state.step + 1)
        eligible = reading.undecided(canvas, end=state.end)
        if not len(eligible.positions):
            return Edit(), after
        scores = self.scores(canvas, state.facts, state.start, eligible)
        return eligible.commit(self.select(eligible, scores, state)), after


@dataclass(frozen=True)
class Scheduled(Blockwise):
    """A schedule: `steps` forwards, split evenly among the blocks, or `block_steps` for each block."""

    steps: int | None = knob(
        None,
        "total forwards, a multiple of the number of blocks; few: many tokens per forward, gen_length or "
        "more: one; default: gen_length; for block-causal models any number, at least 1: every block "
        "commits gen_length / steps tokens per forward",
    )
    block_steps: int | None = knob(
        None, "forwards per block, at least 1; 1: the whole block at once; default: set by steps"
    )

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the number of forwards in the schedule."""
        if self.block_steps is not None:
            return self.block_steps * self.num_blocks(canvas, facts)
        return len(canvas) - canvas.prompt_length if self.steps is None else self.steps

    def planned_step(self, canvas: Canvas, state: Block) -> int | None:
        """Return the block's share of the schedule times the blocks before, plus the block's forwards."""
        if self.is_aligned(canvas, state.facts):  # the prompt may cut the first block's share
            return None
        steps, blocks = (
            self.planned_steps(canvas, state.facts),
            self.num_blocks(canvas, state.facts),
        )
        length = self.length_of(canvas, state.facts)
        return (state.start - canvas.prompt_length) // length * (steps // blocks) + state.step

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the canvas, and that `steps` can be split evenly among its blocks."""
        size = len(canvas) - canvas.prompt_length
        block = super().start(canvas, facts)
        length, blocks = self.length_of(canvas, facts), self.num_blocks(canvas, facts)
        check_block_steps(self.block_steps)
        if self.steps is not None and self.block_steps is not None:
            raise ConfigError(
                f"steps={self.steps} and block_steps={self.block_steps} both set the forwards; give one"
            )
        ragged = not self.is_aligned(canvas, facts) and (self.steps or 0) % blocks
        if self.steps is not None and (self.steps < 1 or ragged):
            raise ConfigError(
                f"steps={self.steps} cannot be split over {blocks} blocks (gen_length={size}, "
                f"block_length={length}); use a positive multiple of {blocks}"
            )
        return block

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """Return a block with quotas for its open positions or, if aligned, for a whole block."""
        block = super().enter(canvas, start, facts)
        count = len(canvas.open_positions(start, block.end))
        steps = self.block_steps
        aligned, length = self.is_aligned(canvas, facts), self.length_of(canvas, facts)
        if steps is None and self.steps is not None:
            size = len(canvas) - canvas.prompt_length
            steps = self.steps // self.num_blocks(canvas, facts)
            if aligned:  # the prompt may cut the first block: keep the rate of the schedule
                steps = max(1, self.steps * length // size)
        if aligned and steps is not None:
            count = length
        steps = count if steps is None else steps
        quotas = quota_schedule(count, max(1, min(steps, count)))
        return dataclasses.replace(block, quotas=quotas)

    @staticmethod
    def quota_of(block: Block) -> int:
        """Return the number of positions to commit in this forward; 1 after the end of the schedule."""
        return block.quotas[block.step] if block.step < len(block.quotas) else 1


def check_block_steps(block_steps: int | None) -> None:
    """Raise ConfigError for a number of forwards below 1."""
    if block_steps is not None and block_steps < 1:
        raise ConfigError(f"block_steps={block_steps} must be at least 1 (or null for no quota)")
