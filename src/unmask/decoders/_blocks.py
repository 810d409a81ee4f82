"""Semi-autoregressive decoding: blocks from left to right, one rule inside.

Source: LLaDA, arXiv:2502.09992, Appendix B.4.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from unmask.canvas import Ask, Canvas, Edit, Ints, ModelFacts, Reading, Stat
from unmask.decoders._scores import Scores, Scoring
from unmask.errors import ConfigError
from unmask.knobs import knob
from unmask.selection import quota_schedule


@dataclass(frozen=True, slots=True)
class Block:
    """A running block `[start, end)`; `step` forwards were made in it; `quotas` per forward.

    `memory` is what the method itself remembers; it goes from block to block.
    """

    start: int
    end: int
    facts: ModelFacts
    step: int = 0
    quotas: tuple[int, ...] = ()
    memory: Any = None


@dataclass(frozen=True)
class Blockwise(Scoring):
    """Fixed blocks, left to right; `select` says what is committed.

    Eligible are all open slots left of the block's end.
    """

    block_length: int | None = knob(
        None,
        "slots per block, 1 (left to right) to gen_length (any order), a divisor of gen_length; "
        "default: the largest divisor in 8..32, else gen_length; for infilling the whole text",
    )

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Indices of the reading (of eligible slots, never empty) to commit."""
        raise AssertionError(f"{type(self).__name__} defines no rule")

    @property
    def stats(self) -> frozenset[Stat]:
        """Statistics that the method reads."""
        return self.score_stats

    def length_of(self, canvas: Canvas) -> int:
        """The block length in force: the knob, or its default for this canvas."""
        if self.block_length is not None:
            return self.block_length
        size = len(canvas) - canvas.prompt_length
        if canvas.infilling:
            return size
        fitting = [n for n in range(8, 33) if size % n == 0]
        return fitting[-1] if fitting else size

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """The block at `start`."""
        return Block(start, min(start + self.length_of(canvas), len(canvas)), facts)

    def max_slots(self, canvas: Canvas, facts: ModelFacts) -> int:
        """The canvas never grows."""
        return len(canvas)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the knobs against the canvas and enter the first block."""
        self.check_scores(facts)
        size, length = len(canvas) - canvas.prompt_length, self.length_of(canvas)
        if length < 1:
            raise ConfigError(f"block_length={length} must be at least 1")
        if size % length and not canvas.infilling:
            near = min(
                (n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - length)
            )
            raise ConfigError(
                f"block_length={length} does not divide gen_length={size}; "
                f"use block_length={near}, or a gen_length that is a multiple of {length}"
            )
        return self.enter(canvas, canvas.prompt_length, facts)

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Every open slot left of the block's end; full blocks are left behind."""
        rows = canvas.open_slots(0, state.end)
        while len(rows) == 0:
            state = self.next_block(canvas, state)
            rows = canvas.open_slots(0, state.end)
        window = (min(state.start, int(rows[0])), state.end)
        return Ask(rows, window, stats=self.stats), state

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """The block after a full one."""
        found = self.enter(canvas, state.end, state.facts)
        return dataclasses.replace(found, memory=state.memory)

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit what the rule selects."""
        after = dataclasses.replace(state, step=state.step + 1)
        eligible = reading.undecided(canvas, end=state.end)
        if not len(eligible.slots):
            return Edit(), after
        scores = self.scores(canvas, state.facts, state.start, eligible)
        return eligible.commit(self.select(eligible, scores, state)), after


@dataclass(frozen=True)
class Scheduled(Blockwise):
    """`steps` forwards over the whole generation, split evenly over the blocks."""

    steps: int | None = knob(
        None,
        "forwards in all, a multiple of the number of blocks; default: gen_length (a token each), beyond "
        "which there is nothing to do",
    )

    def planned_steps(self, canvas: Canvas) -> int:
        """How many forwards the schedule has."""
        return len(canvas) - canvas.prompt_length if self.steps is None else self.steps

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

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """A block with its quotas, set by the slots that are open when it begins."""
        block = super().enter(canvas, start, facts)
        num_open = len(canvas.open_slots(start, block.end))
        blocks = -(-(len(canvas) - canvas.prompt_length) // self.length_of(canvas))
        steps = num_open if self.steps is None else self.steps // blocks
        quotas = quota_schedule(num_open, max(1, min(steps, num_open)))
        return dataclasses.replace(block, quotas=quotas)

    @staticmethod
    def quota_of(block: Block) -> int:
        """How many slots this forward of the block commits; 1 past the schedule."""
        return block.quotas[block.step] if block.step < len(block.quotas) else 1
