"""Decoding on a canvas that grows by blocks: later positions do not exist yet, not even as masks.

Source: LLaDA, arXiv:2502.09992, Appendix B.4 (autoregressive and block diffusion sampling).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading, truncate
from unmask.decoders.base.blockwise import Block
from unmask.decoders.base.protocol import Decoder
from unmask.decoders.base.scoring import Scores, Scoring
from unmask.errors import ConfigError
from unmask.selection import quota, quota_schedule


@dataclass(frozen=True, slots=True)
class Extent:
    """First and last position of the answer, block length, and forwards (None: one per position)."""

    first: int
    total: int
    length: int
    steps: int | None

    def steps_before(self, start: int) -> int:
        """Return the forwards of the blocks before the one at `start`, shared out evenly."""
        if self.steps is None:
            return start - self.first
        blocks = -(-(self.total - self.first) // self.length)
        index = -(-(start - self.first) // self.length)
        return -(-self.steps * index // blocks)


@dataclass(frozen=True)
class Growing(Scoring, Decoder[Block]):
    """A block of masks at the end of the canvas; when it is full, the next one is appended."""

    @abstractmethod
    def growth(self, gen_length: int, facts: ModelFacts) -> tuple[int, int | None]:
        """Return the block length and the number of forwards (None: one per position)."""

    @property
    def grows(self) -> bool:
        """True: edits insert the next block."""
        return True

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return a canvas of the prompt and one block."""
        if canvas.infilling:
            raise ConfigError(
                f"decoder {self.name!r} grows the answer at its end and cannot fill blanks inside a text; "
                f"use vanilla, threshold or another decoder of the whole canvas"
            )
        length, _ = self.growth(len(canvas) - canvas.prompt_length, facts)
        return truncate(canvas, min(len(canvas), canvas.prompt_length + length))

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Return the state of the first block."""
        self.check_scores(facts)
        first, total = canvas.prompt_length, len(canvas)
        length, steps = self.growth(total - first, facts)
        return self._enter(first, Extent(first, total, length, steps), facts)

    @staticmethod
    def _enter(start: int, extent: Extent, facts: ModelFacts) -> Block:
        end = min(start + extent.length, extent.total)
        steps = min(extent.steps_before(end) - extent.steps_before(start), end - start)
        return Block(start, end, facts, quotas=quota_schedule(end - start, steps), memory=extent)

    @staticmethod
    def extent(state: Block) -> Extent:
        """Return the final extent of the canvas, from a block's memory."""
        assert isinstance(state.memory, Extent), "every block of a growing canvas holds its extent"
        return state.memory

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Ask for the open positions of the last block."""
        while not canvas.open[state.start : state.end].any():
            state = self._enter(state.end, self.extent(state), state.facts)
        rows = canvas.open_positions(state.start, state.end)
        return Ask(rows, (state.start, state.end), stats=self.score_stats), state

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the quota; append a block when this one is full."""
        eligible = reading.undecided(canvas, end=state.end)
        scores: Scores = self.scores(canvas, state.facts, state.start, eligible)
        k = state.quotas[state.step] if state.step < len(state.quotas) else 1
        edit = eligible.commit(quota(scores.rank, k))
        return self.extend(canvas, state, edit), replace(state, step=state.step + 1)

    def extend(self, canvas: Canvas, state: Block, edit: Edit) -> Edit:
        """Add the next block's masks to an edit that fills the canvas, up to the final length."""
        extent = self.extent(state)
        room = extent.total - len(canvas)
        if len(edit.commit) < canvas.num_open or room <= 0 or edit.insert:
            return edit
        return replace(edit, insert=((len(canvas), min(extent.length, room)),))
