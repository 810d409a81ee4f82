"""The contract between a decoder and the engine."""

from __future__ import annotations

from typing import Protocol, TypeVar

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading

State = TypeVar("State")


class Decoder(Protocol[State]):
    """The seam: pure functions of one sequence.

    Two more methods are optional. `first_canvas(canvas, facts)` gives the canvas to begin with (its
    default: the whole of it open). `num_settled(canvas, state)` says how many positions from the left will
    not change once they are decided (its default: all; a method that revises says less).
    """

    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """The state before the first forward. Raises ConfigError when the knobs do not fit."""
        ...

    def max_positions(self, canvas: Canvas, facts: ModelFacts) -> int:
        """The most positions the canvas may grow to; bounds memory and the loop."""
        ...

    def ask(self, canvas: Canvas, state: State) -> tuple[Ask, State]:
        """What to read next (after moving on from a full block)."""
        ...

    def step(self, canvas: Canvas, state: State, reading: Reading) -> tuple[Edit, State]:
        """What to do about a reading of the asked positions."""
        ...
