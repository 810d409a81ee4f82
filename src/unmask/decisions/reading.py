"""Reading a canvas once: a decoder of one forward, for the probabilities at all blanks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading
from unmask.decoders.base.protocol import Decoder
from unmask.method import MethodSpec


@dataclass(frozen=True)
class ReadOnce(Decoder[None]):
    """A decoder that reads all open positions in one forward, and commits its proposals there."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> None:
        """Return no state."""

    def ask(self, canvas: Canvas, state: None) -> tuple[Ask, None]:
        """Ask for all open positions."""
        return Ask(canvas.open_positions(), (canvas.prompt_length, len(canvas))), None

    def step(self, canvas: Canvas, state: None, reading: Reading) -> tuple[Edit, None]:
        """Commit the whole reading."""
        return reading.commit(np.arange(len(reading.positions))), None


def reading_method() -> MethodSpec:
    """Return the method of one forward without a cache, greedy."""
    return replace(MethodSpec.parse(), decoder=ReadOnce())
