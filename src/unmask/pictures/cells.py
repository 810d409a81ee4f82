"""Positions and frames of a film, and their descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

CellKind = Literal["open", "again", "new", "old", "fixed"]
"""Undecided; remasked by this forward; written by this forward; written earlier; given."""
LOW_BELOW, MIDDLE_BELOW = 0.3, 0.7
"""Confidences that separate the three colors of new tokens."""


class Written(NamedTuple):
    """A token that was written at a position: text, forward (from 1) and confidence (None: unknown).

    `likeliest`: texts and probabilities of the likeliest tokens there at that time, if the trace has them.
    """

    text: str
    forward: int
    confidence: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class FilmCell:
    """A position of a frame.

    `uid`: its identity in all frames. `written`: the token there, None if it is open or given.
    `earlier`: tokens that were taken back or replaced, the oldest first.
    """

    uid: int
    text: str
    kind: CellKind
    is_end: bool = False
    written: Written | None = None
    earlier: tuple[Written, ...] = ()

    @property
    def is_open(self) -> bool:
        """True if the position is undecided."""
        return self.kind in ("open", "again")


@dataclass(frozen=True, slots=True)
class FilmFrame:
    """The canvas after a forward; 0: before the first. `num_queries`: positions it computed."""

    forward: int
    cells: tuple[FilmCell, ...]
    num_queries: int = 0

    @property
    def num_decided(self) -> int:
        """Number of decided positions that were not given."""
        return sum(not cell.is_open and cell.kind != "fixed" for cell in self.cells)

    @property
    def num_new(self) -> int:
        """Number of tokens that the forward wrote."""
        return sum(cell.kind == "new" for cell in self.cells)

    @property
    def size(self) -> int:
        """Number of positions that were not given."""
        return sum(cell.kind != "fixed" for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Frames:
    """A decode, frame by frame; `title` names model and method, `prompt` is the text before the answer."""

    frames: tuple[FilmFrame, ...]
    title: str = ""
    prompt: str = ""

    @property
    def num_forwards(self) -> int:
        """Number of the last frame's forward."""
        return self.frames[-1].forward

    def status(self, frame: FilmFrame) -> str:
        """Return a line about a frame: its forward and the number of decided positions."""
        return (
            f"forward {frame.forward} of {self.num_forwards} · "
            f"{frame.num_decided} of {frame.size} positions"
        )


def shown_text(cell: FilmCell) -> str:
    """Return a position's text on one line: ends as a mark, line ends as an arrow."""
    if cell.is_open:
        return ""
    return "∎" if cell.is_end else cell.text.replace("\n", "↵").replace("\t", " ")


def level(cell: FilmCell) -> str:
    """Return low, middle or high for the confidence of a new token (unknown: middle)."""
    confidence = None if cell.written is None else cell.written.confidence
    if confidence is None:
        return "middle"
    return "low" if confidence < LOW_BELOW else "middle" if confidence < MIDDLE_BELOW else "high"


def about(cell: FilmCell, position: int) -> str:
    """Return what is known of a position as one line: its token, and earlier ones.

    Of each: forward, probability, and the likeliest tokens then, as far as they are known.
    """
    if cell.kind == "fixed":
        return f"position {position}: {cell.text!r}, given"
    if cell.written is None:
        state = "filled after the end" if cell.is_end else "undecided"
        line = f"position {position}: {state}"
    else:
        line = f"position {position}: {_told(cell.written)}"
    earlier = "; ".join(_told(written) for written in cell.earlier)
    return f"{line} (before: {earlier})" if earlier else line


def _told(written: Written) -> str:
    text = f"{written.text!r}, forward {written.forward}"
    if written.confidence is not None:
        text += f", probability {written.confidence:.2f}"
    others = ", ".join(f"{other!r} {share:.2f}" for other, share in written.likeliest)
    return f"{text}, likeliest {others}" if others else text


def order_of(frames: Sequence[FilmFrame]) -> list[int]:
    """Return the identities of all positions of all frames, each after its left neighbor."""
    order: list[int] = []
    known: set[int] = set()
    for frame in frames:
        last = -1
        for cell in frame.cells:
            if cell.uid not in known:
                known.add(cell.uid)
                order.insert(order.index(last) + 1 if last >= 0 else 0, cell.uid)
            last = cell.uid
    return order
