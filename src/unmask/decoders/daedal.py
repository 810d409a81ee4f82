"""DAEDAL: the answer's length is found, not given.

Source: arXiv:2508.00819, Algorithm 1. Phase 1: the canvas grows by `expansion_factor` masks until the
model expects the end of text at its tail (`initial_eot_expand_thres`). Phase 2: blocks slide over it and
everything surer than `threshold` is committed; while the end is not expected (`decode_eot_expand_thres`),
the least sure open position of the block, below `low_conf_expand_thres`, becomes `expansion_factor` masks.
Differs: phase 1's last forward is phase 2's first. `compat=True` does as the published code, which
appends `num_check_last_eot / 2` end tokens in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask import selection
from unmask.canvas import Ask, Canvas, Edit, Ints, ModelFacts, Reading
from unmask.decoders import Decoder, Scoring, knob
from unmask.errors import ConfigError

MAX_GEN_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Growth:
    """Start of the sliding block, flag of phase 2, and the maximum number of positions."""

    facts: ModelFacts
    cursor: int
    most: int
    is_denoising: bool = False


@dataclass(frozen=True)
class Daedal(Scoring, Decoder[Growth]):
    """Both phases."""

    chooses_length: ClassVar[bool] = True
    length_knob: ClassVar[str] = "initial_gen_length"

    block_length: int = knob(32, "positions of the sliding block, at least 1")
    threshold: float = knob(
        0.9, "confidence above which a token is committed, in [0, 1]", tune=(0.5, 0.99)
    )
    initial_gen_length: int = knob(64, "masks to begin with, at least 1")
    max_gen_length: int | None = knob(
        None, "most positions of the answer, never more than the context leaves; default: 2048"
    )
    initial_eot_expand_thres: float = knob(
        0.5, "phase 1 grows while the tail's mean probability of the end is below; 0: never"
    )
    decode_eot_expand_thres: float = knob(
        0.9, "phase 2 expands while the tail's mean probability of the end is below; 0: never"
    )
    low_conf_expand_thres: float = knob(
        0.1, "a position less sure than this may be expanded, in [0, 1]; 0: none, 1: any"
    )
    num_check_last_eot: int = knob(32, "end tokens that are counted at the tail, at least 1")
    expansion_factor: int = knob(8, "masks that take the place of one, at least 2")

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares = (
            "threshold",
            "initial_eot_expand_thres",
            "decode_eot_expand_thres",
            "low_conf_expand_thres",
        )
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("block_length", "initial_gen_length", "num_check_last_eot"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.expansion_factor < 2:
            raise ConfigError(f"expansion_factor={self.expansion_factor} must be at least 2")
        if self.max_gen_length is not None and self.max_gen_length < self.initial_gen_length:
            raise ConfigError(
                f"max_gen_length={self.max_gen_length} is less than "
                f"initial_gen_length={self.initial_gen_length}"
            )

    def first_length(self) -> int:
        """Return the number of positions to begin with."""
        return self.initial_gen_length

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return the canvas unchanged; blanks inside a text have fixed lengths."""
        if canvas.infilling:
            raise ConfigError(
                "decoder 'daedal' chooses the answer's length and cannot fill blanks of given lengths; use "
                "vanilla, threshold or another"
            )
        return canvas

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the maximum length of the canvas."""
        room = facts.max_length - canvas.prompt_length
        most = min(self.max_gen_length or MAX_GEN_LENGTH, room)
        return canvas.prompt_length + max(most, self.initial_gen_length)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Growth:
        """Begin phase 1."""
        self.check_scores(facts)
        if facts.eos_id is None:
            raise ConfigError("decoder 'daedal' needs a model with an end-of-text token")
        return Growth(facts, canvas.prompt_length, self.max_positions(canvas, facts))

    def ask(self, canvas: Canvas, state: Growth) -> tuple[Ask, Growth]:
        """Ask for the block's open positions and the tail; for the rest of the answer if computed."""
        cursor = state.cursor
        while not canvas.open[cursor : cursor + self.block_length].any():
            cursor += self.block_length
        end = min(cursor + self.block_length, len(canvas))
        tail = np.arange(
            max(canvas.prompt_length, len(canvas) - self.num_check_last_eot), len(canvas)
        )
        ask = Ask(
            np.union1d(canvas.open_positions(cursor, end), tail),
            (cursor, end),
            needed=tail,
            optional=np.arange(canvas.prompt_length, len(canvas)),
            stats=self.score_stats | {"eos"},
        )
        return ask, replace(state, cursor=cursor)

    def expected_end(self, state: Growth, reading: Reading) -> float:
        """Return the mean end probability over the last positions that predict it; missing ones count 0."""
        says_end = np.flatnonzero(reading.stats["eos_top"] > 0)[-self.num_check_last_eot :]
        return float(reading.stats["eos"][says_end].sum()) / self.num_check_last_eot

    def step(self, canvas: Canvas, state: Growth, reading: Reading) -> tuple[Edit, Growth]:
        """Grow, or commit and expand."""
        expected = self.expected_end(state, reading)
        room = state.most - len(canvas)
        notes = {"expected_end": expected, "gen_length": float(len(canvas) - canvas.prompt_length)}
        if not state.is_denoising:
            if expected < self.initial_eot_expand_thres and room > 0:
                grown = ((len(canvas), min(self.expansion_factor, room)),)
                return Edit(insert=grown, notes=notes), state
            state = replace(state, is_denoising=True)
            extra = min(self.num_check_last_eot // 2, room)
            if self.compat and extra > 0:
                assert state.facts.eos_id is not None, "checked at the start"
                return Edit(append=np.full(extra, state.facts.eos_id), notes=notes), state
        end = min(state.cursor + self.block_length, len(canvas))
        block = reading.undecided(canvas, state.cursor, end)
        scores = self.scores(canvas, state.facts, state.cursor, block)
        chosen: Ints = np.flatnonzero(scores.level > self.threshold)
        if not len(chosen):
            chosen = selection.ranking(scores.rank)[:1]
        edit = block.commit(chosen, notes)
        left = np.setdiff1d(np.arange(len(block.positions)), chosen)
        unsure = left[scores.level[left] < self.low_conf_expand_thres]
        if expected < self.decode_eot_expand_thres and room > 0 and len(unsure):
            weakest = unsure[np.argmin(scores.level[unsure])]
            edit = self.expand(canvas, edit, int(block.positions[weakest]), room)
        return edit, state

    def expand(self, canvas: Canvas, edit: Edit, position: int, room: int) -> Edit:
        """Expand the position to `expansion_factor` masks: new ones are inserted after it.

        What then exceeds the maximum falls off the end.
        """
        count = self.expansion_factor - 1
        overflow = max(0, count - room)
        first_cut = len(canvas) - overflow
        count -= max(0, position + 1 - first_cut)  # masks that would fall off themselves
        kept = edit.commit < first_cut
        return replace(
            edit,
            commit=edit.commit[kept],
            tokens=edit.tokens[kept],
            confidence=edit.confidence[kept],
            delete=np.arange(max(first_cut, position + 1), len(canvas)),
            insert=((position + 1, count),) if count > 0 else (),
        )


DECODER = Daedal
