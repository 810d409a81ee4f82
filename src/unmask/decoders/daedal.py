"""DAEDAL: the decoder chooses the length of the answer.

Source: arXiv:2508.00819, Algorithm 1. Phase 1: the canvas grows by `expansion_factor` masks until the model
expects the end of text at its tail (`initial_eot_expand_thres`). Phase 2: blocks slide over it, and every
position with confidence above `threshold` is committed; while the end is not expected
(`decode_eot_expand_thres`), the least confident open position of the block, if it is below
`low_conf_expand_thres`, is expanded to `expansion_factor` masks. Differs: the last forward of phase 1 is
the first of phase 2. `compat=True` appends `num_check_last_eot / 2` end tokens in between, like the
published code.
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
    """Start of the sliding block, maximum length of the canvas, and a flag for phase 2."""

    facts: ModelFacts
    cursor: int
    max_positions: int
    is_denoising: bool = False


@dataclass(frozen=True)
class Daedal(Scoring, Decoder[Growth]):
    """Growth to the expected length, then decoding with expansion."""

    chooses_length: ClassVar[bool] = True
    length_knob: ClassVar[str] = "initial_gen_length"

    block_length: int = knob(
        32, "positions of the sliding block, at least 1; 1: left to right, large: the answer"
    )
    threshold: float = knob(
        0.9,
        "confidence above which a token is committed, in [0, 1]; 0: the whole block at once, 1: one token "
        "per forward",
        tune=(0.5, 0.99),
    )
    initial_gen_length: int = knob(
        64,
        "initial length of the answer, at least 1; small: phase 1 finds the length, large: no growth",
    )
    max_gen_length: int | None = knob(
        None,
        "maximum length of the answer, at least initial_gen_length and within the model's context; "
        "at initial_gen_length: no growth; "
        "default: 2048",
    )
    initial_eot_expand_thres: float = knob(
        0.5,
        "mean end-of-text probability at the tail below which phase 1 lengthens the answer, in [0, 1]; 0: "
        "never, 1: practically always",
    )
    decode_eot_expand_thres: float = knob(
        0.9,
        "mean end-of-text probability at the tail below which phase 2 expands positions, in [0, 1]; 0: "
        "never, 1: practically always",
    )
    low_conf_expand_thres: float = knob(
        0.1, "confidence below which a position may be expanded, in [0, 1]; 0: none, 1: any"
    )
    num_check_last_eot: int = knob(
        32,
        "number of predicted end tokens at the tail that are averaged, at least 1; 1: one is enough to "
        "end the growth, large: hardly any tail is",
    )
    expansion_factor: int = knob(
        8,
        "masks that phase 1 appends, and that replace a mask in phase 2, at least 2; 2: slow growth, "
        "large: to max_gen_length at once",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        probabilities = (
            "threshold",
            "initial_eot_expand_thres",
            "decode_eot_expand_thres",
            "low_conf_expand_thres",
        )
        for name in probabilities:
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

    def defaults(self, gen_length: int, block_size: int | None) -> dict[str, object]:
        """Return the maximum length, which a longer initial length raises."""
        return {"max_gen_length": max(MAX_GEN_LENGTH, self.initial_gen_length)}

    def first_length(self) -> int:
        """Return the initial length of the answer."""
        return self.initial_gen_length

    def first_canvas(self, canvas: Canvas, facts: ModelFacts) -> Canvas:
        """Return the canvas unchanged. Raises ConfigError for blanks, which have fixed lengths."""
        if canvas.infilling:
            raise ConfigError(
                "decoder 'daedal' chooses the answer's length and cannot fill blanks of fixed lengths; use "
                "vanilla, threshold or another decoder"
            )
        return canvas

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the maximum length of the canvas."""
        room = facts.max_length - canvas.prompt_length
        size = min(self.max_gen_length or MAX_GEN_LENGTH, room)
        return canvas.prompt_length + max(size, self.initial_gen_length)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Growth:
        """Begin phase 1."""
        self.check_scores(facts)
        if facts.eos_id is None:
            raise ConfigError(
                "decoder 'daedal' needs a model with an end-of-text token; use another decoder"
            )
        return Growth(facts, canvas.prompt_length, self.max_positions(canvas, facts))

    def ask(self, canvas: Canvas, state: Growth) -> tuple[Ask, Growth]:
        """Ask for the block's open positions and the tail; for the rest of the answer where computed."""
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
        """Return the mean probability of the last end tokens that are predicted; missing ones count 0."""
        ends = np.flatnonzero(reading.stats["eos_top"] > 0)[-self.num_check_last_eot :]
        return float(reading.stats["eos"][ends].sum()) / self.num_check_last_eot

    def step(self, canvas: Canvas, state: Growth, reading: Reading) -> tuple[Edit, Growth]:
        """Lengthen the answer (phase 1), or commit and expand (phase 2)."""
        expected = self.expected_end(state, reading)
        room = state.max_positions - len(canvas)
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
        others = np.setdiff1d(np.arange(len(block.positions)), chosen)
        unsure = others[scores.level[others] < self.low_conf_expand_thres]
        if expected < self.decode_eot_expand_thres and room > 0 and len(unsure):
            weakest = unsure[np.argmin(scores.level[unsure])]
            edit = self.expand(canvas, edit, int(block.positions[weakest]), room)
        return edit, state

    def expand(self, canvas: Canvas, edit: Edit, position: int, room: int) -> Edit:
        """Expand a position to `expansion_factor` masks, by inserting masks after it.

        Positions that then exceed the maximum length are deleted at the end.
        """
        count = self.expansion_factor - 1
        overflow = max(0, count - room)
        first_cut = len(canvas) - overflow
        count -= max(0, position + 1 - first_cut)  # those that would exceed it themselves
        remaining = edit.commit < first_cut
        return replace(
            edit,
            commit=edit.commit[remaining],
            tokens=edit.tokens[remaining],
            confidence=edit.confidence[remaining],
            delete=np.arange(max(first_cut, position + 1), len(canvas)),
            insert=((position + 1, count),) if count > 0 else (),
        )


DECODER = Daedal
