"""WINO: wide in, narrow out. Commit at a low threshold, and remask tokens that fail a verification.

Source: arXiv:2507.18578, Algorithm 1. Each forward drafts and verifies. Draft: commit the open positions of
the block with confidence above `wide_in_thres`, at most the share `draft_share` of the open ones, within
`min_draft` and `max_draft`: the cap of the authors' code (`decoding.py`) with its numbers. Verify: a
shadow block predicts each decided position from all others; positions whose token has a probability below
`narrow_out_thres` are remasked, always fewer than the previous forward committed. Differs: shadow queries
are only computed when the block has decided positions. A draft given with the request is taken for a
draft of the method: the first forward of a block verifies it, all of it if need be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from unmask import selection
from unmask.canvas import NO_POSITIONS, Ask, Canvas, Edit, Ints, Reading, probability
from unmask.decoders import Block, Blockwise, knob
from unmask.errors import ConfigError

FIRST_ACCEPT = 30
"""Number of commits that is assumed before the first forward of a block."""


@dataclass(frozen=True)
class Wino(Blockwise):
    """Draft and verification in the same forward."""

    revises: ClassVar[bool] = True

    wide_in_thres: float = knob(
        0.6,
        "confidence above which a token is committed for now, in [0, 1]; 0: up to the cap, 1: one per "
        "forward",
        tune=(0.4, 0.9),
    )
    narrow_out_thres: float = knob(
        0.9,
        "probability, given all other positions, below which a token is remasked, in [0, 1]; 0: never, 1: "
        "whenever the rule allows",
        tune=(0.5, 0.99),
    )
    draft_share: float = knob(
        0.7,
        "cap of a draft: share of the block's open positions, in [0, 1], within min_draft and max_draft; "
        "0: min_draft, 1: all of them",
    )
    min_draft: int = knob(
        5, "lower bound of the cap in positions, at least 1; 1: none, at max_draft: a constant cap"
    )
    max_draft: int = knob(
        20,
        "upper bound of the cap in positions, at least min_draft; 1: one token per forward, large: none",
    )
    shadows: Literal["block", "decided"] = knob(
        "block",
        "shadow queries: one per position of the block, which attend to each other, as in the paper "
        "(block), or one per decided position, which do not (decided; cheaper)",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("wide_in_thres", "narrow_out_thres", "draft_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if not 1 <= self.min_draft <= self.max_draft:
            raise ConfigError(
                f"min_draft={self.min_draft}, max_draft={self.max_draft}: use "
                f"1 <= min_draft <= max_draft"
            )

    def num_settled(self, canvas: Canvas, state: Block) -> int:
        """Return the number of settled positions: those before the running block until it is full."""
        full = not canvas.open[: state.end].any() and not self.is_unverified(canvas, state)
        return min(state.end if full else state.start, len(canvas))

    @staticmethod
    def is_unverified(canvas: Canvas, state: Block) -> bool:
        """Return whether the block has a part of the request's draft and was in no forward yet."""
        return state.memory is None and bool(canvas.drafted[state.start : state.end].any())

    def decided(self, canvas: Canvas, block: Block) -> Ints:
        """Return the decided positions of the block, which may be remasked."""
        inside: Ints = np.arange(block.start, block.end)
        return inside[~canvas.open[inside] & ~canvas.fixed[inside]]

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Ask for the block's open positions, and for shadow queries once there is a token to verify."""
        rows = canvas.open_positions(0, state.end)
        while not len(rows) and not self.is_unverified(canvas, state):
            state = self.next_block(canvas, state)
            rows = canvas.open_positions(0, state.end)
        decided = self.decided(canvas, state)
        rows = rows if len(rows) else decided
        ask = Ask(rows, (min(state.start, int(rows[0])), state.end), stats=self.stats)
        shadows = NO_POSITIONS
        if len(decided):
            shadows = np.arange(state.start, state.end) if self.shadows == "block" else decided
        return replace(ask, shadows=shadows, shadows_attend=self.shadows == "block"), state

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the next block with a new count of commits."""
        return replace(super().next_block(canvas, state), memory=None)

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit the draft; remask fewer positions than the previous forward committed."""
        drafted = reading.undecided(canvas, end=state.end)
        is_given = self.is_unverified(canvas, state)
        limit = self.num_accepted(canvas, state) - 1
        if not len(drafted.positions):
            after = replace(state, step=state.step + 1)
            if not is_given:
                return Edit(), after
            remask = self.verify(canvas, state, reading, limit)
            return Edit(remask=remask), replace(after, memory=1)
        scores = self.scores(canvas, state.facts, state.start, drafted)
        sure: Ints = np.flatnonzero(scores.level > self.wide_in_thres)
        cap = int(self.draft_share * len(drafted.positions))
        cap = min(max(cap, self.min_draft), self.max_draft)
        if len(sure) > cap:
            sure = sure[selection.ranking(scores.rank[sure])[:cap]]
        elif not len(sure):
            sure = selection.ranking(scores.rank)[:1]
        edit = drafted.commit(sure)
        if len(sure) > 1 or is_given:
            edit = replace(edit, remask=self.verify(canvas, state, reading, limit))
        return edit, replace(state, step=state.step + 1, memory=len(sure))

    def num_accepted(self, canvas: Canvas, state: Block) -> int:
        """Return the commits of the previous forward; before the first, all of a draft and one."""
        if isinstance(state.memory, int):
            return state.memory
        is_given, num_decided = self.is_unverified(canvas, state), len(self.decided(canvas, state))
        return num_decided + 1 if is_given else FIRST_ACCEPT

    def verify(self, canvas: Canvas, state: Block, reading: Reading, limit: int) -> Ints:
        """Return the decided positions that fail the verification, at most the `limit` worst ones."""
        decided = self.decided(canvas, state)
        if not len(decided):
            return NO_POSITIONS
        shadows = np.arange(state.start, state.end) if self.shadows == "block" else decided
        odds = reading.shadow_log_odds[np.searchsorted(shadows, decided)]
        failed = np.flatnonzero(probability(odds) < self.narrow_out_thres)
        if len(failed) > limit:
            failed = failed[np.argsort(odds[failed], kind="stable")[:limit]]
        return np.sort(decided[failed])


DECODER = Wino
