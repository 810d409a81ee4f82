"""Decoding methods. One paper, one file; the file's name is the decoder's name.

A decoder is a frozen dataclass of knobs with three methods (`Decoder`). It holds no progress: state is
a value that `start` makes and `ask` and `step` pass on, one per sequence. It sees one sequence only,
numbers on the host only, and only the slots it asked for. To add one: write the file, define `DECODER`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, TypeVar

from unmask.canvas import Ask, Canvas, Edit, ModelFacts, Reading
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import set_field

State = TypeVar("State")


def knob(default: Any, help: str) -> Any:
    """A dataclass field with its one-line description (unit, range, source, extremes)."""
    return field(default=default, metadata={"help": help})


class Decoder(Protocol[State]):
    """The seam: pure functions of one sequence."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """The state before the first forward. Raises ConfigError when the knobs do not fit."""
        ...

    def max_slots(self, canvas: Canvas) -> int:
        """The most slots the canvas may grow to; bounds memory and the loop."""
        ...

    def ask(self, canvas: Canvas, state: State) -> tuple[Ask, State]:
        """What to read next (after moving on from a full block). The canvas has open slots."""
        ...

    def step(self, canvas: Canvas, state: State, reading: Reading) -> tuple[Edit, State]:
        """What to do about a reading of the asked slots."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A running block `[start, end)`; `step` forwards were made in it; `quotas` per forward."""

    start: int
    end: int
    step: int = 0
    quotas: tuple[int, ...] = ()


@dataclass(frozen=True)
class Blockwise:
    """Semi-autoregressive decoding: fixed blocks from left to right, one rule inside (`select`).

    Source: LLaDA, arXiv:2502.09992, Appendix B.4. Eligible are all open slots left of the block's end.
    """

    block_length: int | None = knob(
        None,
        "slots per block, 1 (left to right) to gen_length (any order), a divisor of gen_length; "
        "default: the largest divisor in 8..32, else gen_length; for infilling the whole text",
    )
    compat: bool = knob(
        False, "repeat the reference's token-changing quirks instead of the fixed rule"
    )

    def select(self, reading: Reading, block: Block) -> Any:
        """Indices of the reading to commit."""
        raise AssertionError(f"{type(self).__name__} defines no rule")

    def length_of(self, canvas: Canvas) -> int:
        """The block length in force: the knob, or its default for this canvas."""
        if self.block_length is not None:
            return self.block_length
        size = len(canvas) - canvas.prompt_length
        if canvas.infilling:
            return size
        fitting = [n for n in range(8, 33) if size % n == 0]
        return fitting[-1] if fitting else size

    def enter(self, canvas: Canvas, start: int) -> Block:
        """The block at `start`."""
        return Block(start, min(start + self.length_of(canvas), len(canvas)))

    def max_slots(self, canvas: Canvas) -> int:
        """The canvas never grows."""
        return len(canvas)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Block:
        """Check the knobs against the canvas and enter the first block."""
        size, length = len(canvas) - canvas.prompt_length, self.length_of(canvas)
        if length < 1:
            raise ConfigError(f"block_length={length} must be at least 1")
        if size % length and not canvas.infilling:
            near = min(
                (n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - length)
            )
            raise ConfigError(
                f"block_length={length} does not divide gen_length={size}; "
                f"use block_length={near}, or a gen_length that is a multiple of {length}"
            )
        return self.enter(canvas, canvas.prompt_length)

    def ask(self, canvas: Canvas, state: Block) -> tuple[Ask, Block]:
        """Every open slot left of the block's end; full blocks are left behind."""
        rows = canvas.open_slots(0, state.end)
        while len(rows) == 0:
            state = self.enter(canvas, state.end)
            rows = canvas.open_slots(0, state.end)
        return Ask(rows, (min(state.start, int(rows[0])), state.end)), state

    def step(self, canvas: Canvas, state: Block, reading: Reading) -> tuple[Edit, Block]:
        """Commit what the rule selects."""
        edit = reading.commit(self.select(reading, state))
        return edit, dataclasses.replace(state, step=state.step + 1)


def names() -> list[str]:
    """Every decoder's name."""
    return sorted(item.name for item in iter_modules(__path__) if not item.name.startswith("_"))


def decoder_class(name: str) -> Any:
    """The dataclass of a decoder. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("decoder", str(name), names())
    return import_module(f"{__name__}.{name}").DECODER


def make_decoder(name: str, knobs: dict[str, Any]) -> Any:
    """A decoder with these knobs, all of which it has. Raises ConfigError for a wrong value."""
    cls = decoder_class(name)
    return cls(**{key: set_field(cls, key, value) for key, value in knobs.items()})
