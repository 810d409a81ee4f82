"""What is asked for, how it stands, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.canvas import (
    Canvas,
    ModelFacts,
)
from unmask.sampling.params import Proposal

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode; `stop_ids` end the answer when `stop_at_eos`."""

    canvas: Canvas
    decoder: Any
    cache: Any
    proposal: Proposal
    seed: int
    stop_ids: frozenset[int]
    stop_at_eos: bool
    facts: ModelFacts

    @property
    def max_slots(self) -> int:
        """The most slots the canvas may grow to."""
        return int(self.decoder.max_slots(self.canvas, self.facts))

    @property
    def max_forwards(self) -> int:
        """The loop's bound: past it every forward commits all it reads."""
        usual = 2 * (self.max_slots - self.canvas.prompt_length) + 64
        own = getattr(self.decoder, "max_forwards", None)
        return usual if own is None else max(usual, int(own(self.canvas, self.facts)))
