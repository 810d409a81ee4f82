"""dInfer's credit decoding: a token that is proposed repeatedly gains credit and is committed earlier.

Source: CreditDecoding, arXiv:2510.06133, Eq. 4 to 6, as in dInfer. Each position and token has a credit C.
A forward sets C := beta C, plus p^gamma for the likeliest token, and adds alpha ln(1 + C) to the logits;
then the threshold rule applies. Differs: the credit belongs to one request (in the reference it can pass to
the next).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask import selection
from unmask.canvas import Ask, Canvas, Credit, Edit, Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob
from unmask.errors import ConfigError

Amounts = dict[tuple[int, int], float]
"""Credit by (position identity, token)."""


@dataclass(frozen=True)
class CreditDecoding(Blockwise):
    """The threshold rule on logits to which the credit is added."""

    compares_forwards: ClassVar[bool] = True

    threshold: float = knob(
        0.9,
        "confidence, with credit, from which a token is committed, in [0, 1]; 0: the whole block at once, "
        "1: mostly one token per forward",
        tune=(0.5, 0.99),
    )
    credit_alpha: float = knob(
        0.7,
        "weight of the credit in the logits, >= 0; 0: no credit, large: repeated proposals prevail",
        tune=(0.1, 1.0),
    )
    credit_beta: float = knob(
        0.8,
        "share of the credit that remains after a forward, in [0, 1]; 0: none, 1: all",
        tune=(0.5, 0.95),
    )
    credit_gamma: float = knob(
        0.2,
        "exponent of the confidence that is added as credit, >= 0; 0: 1 per forward, large: only for "
        "near-certain tokens",
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("threshold", "credit_beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("credit_alpha", "credit_gamma"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Add the remaining credit of earlier forwards to the ask."""
        ask, state = super().ask(canvas, state)
        amounts = self.amounts(state)
        position_of = dict(zip(canvas.uid[ask.rows].tolist(), ask.rows.tolist(), strict=True))
        entries = [
            (position_of[uid], token, c)
            for (uid, token), c in amounts.items()
            if uid in position_of
        ]
        credit = Credit(
            positions=np.array([position for position, _, _ in entries], dtype=np.int64),
            tokens=np.array([token for _, token, _ in entries], dtype=np.int64),
            amounts=np.array([self.credit_beta * c for _, _, c in entries], dtype=np.float64),
            alpha=self.credit_alpha,
            gamma=self.credit_gamma,
        )
        return replace(ask, credit=credit), state

    @staticmethod
    def amounts(state: Block) -> Amounts:
        """Return the credit gained so far in the block."""
        return state.memory if isinstance(state.memory, dict) else {}

    def next_block(self, canvas: Canvas, state: Block) -> Block:
        """Enter the next block without credit."""
        return replace(super().next_block(canvas, state), memory=None)

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Update the credit with this forward's reading."""
        amounts = {key: self.credit_beta * c for key, c in self.amounts(state).items()}
        uids = canvas.uid[reading.positions].tolist()
        raw = zip(uids, reading.stats["raw_token"], reading.stats["raw_confidence"], strict=True)
        for uid, token, confidence in raw:
            key = (uid, int(token))
            amounts[key] = amounts.get(key, 0.0) + float(confidence) ** self.credit_gamma
        return super().step(canvas, replace(state, memory=amounts), reading)

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Select by the threshold rule."""
        return selection.threshold(scores.rank, scores.level, self.threshold)


DECODER = CreditDecoding
