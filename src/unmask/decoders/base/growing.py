"""Decoding on a canvas that grows by blocks: what comes later is not there yet, not even as masks.

Source: LLaDA, arXiv:2502.09992, Appendix B.4 (autoregressive and block diffusion sampling).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading, truncate
from unmask.decoders.base.blockwise import Block
from unmask.decoders.base.scoring import Scores, Scoring
from unmask.errors import ConfigError
from unmask.selection import quota, quota_schedule


@dataclass(frozen=True, slots=True)
class Extent:
    """How long the canvas may get, and how many forwards a whole block takes (None: its positions)."""

    total: int
    length: int
    steps: int | None


@dataclass(frozen=True)
class Growing(Scoring):
    """One block of masks at the end; when it is full, the next."""

    def growth(self, gen_length: int) -> tuple[int, int | None]:
        """Positions to grow by, and forwards a block (None: a position each)."""
        raise AssertionError(f"{type(self).__name__} says not how it grows")

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """The prompt and one block."""
        if canvas.infilling:
            name = type(self).__module__.rpartition(".")[2]
            raise ConfigError(
                f"decoder {name!r} grows the answer at its end and cannot fill blanks inside a text; use "
                f"vanilla, threshold or another that works on the whole canvas"
            )
        length, _ = self.growth(len(canvas) - canvas.prompt_length)
        return truncate(canvas, min(len(canvas), canvas.prompt_length + length))

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """All of `gen_length`."""
        return len(canvas)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """The first block, of a canvas that is still whole."""
        self.check_scores(facts)
        length, steps = self.growth(len(canvas) - canvas.prompt_length)
        return self._enter(canvas.prompt_length, Extent(len(canvas), length, steps), facts)

    @staticmethod
    def _enter(start: int, extent: Extent, facts: ModelFacts) -> Block:
        end = min(start + extent.length, extent.total)
        steps = end - start if extent.steps is None else min(extent.steps, end - start)
        return Block(start, end, facts, quotas=quota_schedule(end - start, steps), memory=extent)

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """The open positions of the last block."""
        while not canvas.open[state.start : state.end].any():
            state = self._enter(state.end, state.memory, state.facts)
        rows = canvas.open_positions(state.start, state.end)
        return Ask(rows, (state.start, state.end), stats=self.score_stats), state

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the quota, and grow when the block is full."""
        eligible = reading.undecided(canvas, end=state.end)
        scores: Scores = self.scores(canvas, state.facts, state.start, eligible)
        k = state.quotas[state.step] if state.step < len(state.quotas) else 1
        edit = eligible.commit(quota(scores.rank, k))
        return self.extend(canvas, state, edit), replace(state, step=state.step + 1)

    @staticmethod
    def extend(canvas: Canvas, state: Block, edit: Edit) -> Edit:
        """The edit, with the next block's masks if it fills the canvas and there is more to come."""
        room = state.memory.total - len(canvas)
        if len(edit.commit) < canvas.num_open or room <= 0 or edit.insert:
            return edit
        return replace(edit, insert=((len(canvas), min(state.memory.length, room)),))
