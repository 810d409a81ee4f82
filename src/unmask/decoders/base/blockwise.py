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

    def after_forward(self) -> Block:
        """Return the block after one more forward."""
        return Block(
            self.start,
            self.end,
            self.facts,
            self.step + 1,
            self.quotas,
            self.memory,
            self.limit,
        )


def default_block_length(size: int, block_size: int | None) -> int:
    """Return the block length of an answer of `size` positions: the model's, or a divisor in 8..32."""
    if block_size is not None:
        return block_size
    divisors = [n for n in range(8, 33) if size % n == 0]
    return divisors[-1] if divisors else size


@dataclass(frozen=True)
class Blockwise(Scoring, Decoder[Block]):
    """Fixed blocks from left to right; `select` chooses the positions to commit.

    All open positions left of the block's end are eligible.
    """

    block_length: int | None = knob(
        None,
        "positions per block, at least 1; 1: left to right, gen_length: any order; the last one "
        "ends with the answer; "
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
        return default_block_length(size, facts.block_size)

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the block length."""
        return {"block_length": default_block_length(gen_length, block_size)}

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

    def num_relevant(self, canvas: Canvas, state: Block, end: int) -> int:
        """Return the end of the running block, if the answer ends in it: no later block will run."""
        return state.end if end < state.end else len(canvas)

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the block after a full one."""
        block = self.enter(canvas, state.end, state.facts)
        return dataclasses.replace(block, memory=state.memory, limit=state.limit)

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the positions that the rule selects."""
        after = state.after_forward()
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
        "total forwards, at least 1, a multiple of the number of blocks if block_length is given too; "
        "few: many tokens "
        "per forward, gen_length or more: one; default: gen_length; for block-causal models any "
        "number: every block commits gen_length / steps tokens per forward",
    )
    block_steps: int | None = knob(
        None, "forwards per block, at least 1; 1: the whole block at once; default: set by steps"
    )

    def schedule(self, facts: ModelFacts) -> tuple[int | None, int | None]:
        """Return `steps` and `block_steps`, of which a default gives way to the other."""
        adaptable = {"steps", "block_steps"} & facts.adaptable
        if self.steps is None or self.block_steps is None or len(adaptable) != 1:
            return self.steps, self.block_steps
        return (None, self.block_steps) if "steps" in adaptable else (self.steps, None)

    def length_of(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the block length; a default one leaves every block a forward of the given `steps`."""
        length, steps = super().length_of(canvas, facts), self.schedule(facts)[0]
        is_given = self.block_length is not None and "block_length" not in facts.adaptable
        has_steps = steps is not None and "steps" not in facts.adaptable
        if is_given or not has_steps or facts.block_size is not None:
            return length
        size = len(canvas) - canvas.prompt_length
        return max(length, -(-size // max(1, steps or 1)))

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the block length, which leaves each block a forward of given `steps`, and the steps."""
        values = super().defaults(gen_length, block_size)
        if self.steps is not None and block_size is None:
            shared = -(-gen_length // max(1, self.steps))
            return {"block_length": max(default_block_length(gen_length, None), shared)}
        return values if self.block_steps is not None else values | {"steps": gen_length}

    def planned_steps(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the number of forwards in the schedule."""
        blocks, (steps, block_steps) = self.num_blocks(canvas, facts), self.schedule(facts)
        if block_steps is not None:
            return block_steps * blocks
        if steps is None:
            return len(canvas) - canvas.prompt_length
        return max(steps, blocks) if "steps" in facts.adaptable else steps

    def steps_before(self, canvas: Canvas, facts: ModelFacts, start: int) -> int:
        """Return the forwards planned for the blocks before the one at `start`, shared out evenly."""
        offset = start - canvas.prompt_length
        if self.schedule(facts) == (None, None) and not canvas.infilling:
            return offset
        index = -(-offset // self.length_of(canvas, facts))
        return -(-self.planned_steps(canvas, facts) * index // self.num_blocks(canvas, facts))

    def planned_step(self, canvas: Canvas, state: Block) -> int | None:
        """Return the forwards planned for the blocks before, plus those of this block so far."""
        if self.is_aligned(canvas, state.facts):  # the prompt may cut the first block's share
            return None
        return self.steps_before(canvas, state.facts, state.start) + state.step

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the canvas, and that `steps` can be shared out among its blocks."""
        size = len(canvas) - canvas.prompt_length
        block = super().start(canvas, facts)
        length, blocks = self.length_of(canvas, facts), self.num_blocks(canvas, facts)
        check_block_steps(self.block_steps)
        steps, block_steps = self.schedule(facts)
        if steps is not None and block_steps is not None:
            raise ConfigError(
                f"steps={steps} and block_steps={block_steps} both set the forwards; give one"
            )
        is_free = self.is_aligned(canvas, facts) or "steps" in facts.adaptable
        if steps is not None and not (is_free and steps >= 1):
            is_even = self.block_length is not None and "block_length" not in facts.adaptable
            check_steps(steps, blocks, size, length, is_even=is_even)
        return block

    def enter(self, canvas: Canvas, start: int, facts: ModelFacts) -> Block:
        """Return a block with quotas for its open positions or, if aligned, for a whole block."""
        block = super().enter(canvas, start, facts)
        count = len(canvas.open_positions(start, block.end))
        total, steps = self.schedule(facts)
        aligned, length = self.is_aligned(canvas, facts), self.length_of(canvas, facts)
        if steps is None and total is not None and aligned:
            size = len(canvas) - canvas.prompt_length
            # the prompt may cut the first block: keep the rate of the schedule
            steps = max(1, total * length // size)
        elif steps is None and total is not None:
            before = self.steps_before(canvas, facts, start)
            steps = self.steps_before(canvas, facts, block.end) - before
        if aligned and steps is not None:
            count = length
        steps = count if steps is None else steps
        quotas = quota_schedule(count, max(1, min(steps, count)))
        return dataclasses.replace(block, quotas=quotas)

    @staticmethod
    def quota_of(block: Block) -> int:
        """Return the number of positions to commit in this forward; 1 after the end of the schedule."""
        return block.quotas[block.step] if block.step < len(block.quotas) else 1


def check_steps(steps: int, blocks: int, size: int, length: int, *, is_even: bool) -> None:
    """Raise ConfigError unless `steps` can be shared out among the blocks, evenly if `is_even`."""
    if steps >= blocks and not (is_even and steps % blocks):
        return
    allowed = f"a positive multiple of {blocks}" if is_even else f"at least {blocks}"
    raise ConfigError(
        f"steps={steps} cannot be split over {blocks} blocks (gen_length={size}, "
        f"block_length={length}); use {allowed}"
    )


def check_block_steps(block_steps: int | None) -> None:
    """Raise ConfigError for a number of forwards below 1."""
    if block_steps is not None and block_steps < 1:
        raise ConfigError(f"block_steps={block_steps} must be at least 1 (or null for no quota)")
