"""A layout of a film's positions on a grid of character cells that is the same in every frame.

A position has the width of its longest text in any frame, so an open position already has the room of the
token that will be there and nothing moves while the canvas fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len

from unmask.errors import ConfigError
from unmask.pictures.cells import Frames, order_of, shown_text

MIN_COLUMNS, MAX_COLUMNS = 20, 400


@dataclass(frozen=True, slots=True)
class Place:
    """Line, first column and width of a position, in character cells."""

    line: int
    column: int
    width: int


@dataclass(frozen=True, slots=True)
class FilmLayout:
    """The place of every position of a film, by identity, on `num_lines` lines of `columns` cells."""

    places: dict[int, Place]
    num_lines: int
    columns: int


def layout_of(film: Frames, columns: int = 80) -> FilmLayout:
    """Return the layout of a film. Raises ConfigError for a width outside 20 to 400 cells."""
    if not MIN_COLUMNS <= columns <= MAX_COLUMNS:
        raise ConfigError(
            f"columns={columns} must be between {MIN_COLUMNS} and {MAX_COLUMNS} characters"
        )
    widths: dict[int, int] = {}
    texts: dict[int, str] = {}
    for frame in film.frames:
        for cell in frame.cells:
            widths[cell.uid] = max(widths.get(cell.uid, 1), cell_len(shown_text(cell)))
            texts[cell.uid] = "∎" if cell.is_end else cell.text
    places: dict[int, Place] = {}
    line = column = 0
    for word in _words(order_of(film.frames), texts):
        needed = sum(min(widths[uid], columns) for uid in word)
        if column and column + needed > columns and needed <= columns:
            line, column = line + 1, 0
        for uid in word:
            width = min(widths[uid], columns)
            if column + width > columns:
                line, column = line + 1, 0
            places[uid] = Place(line, column, width)
            column += width
            if texts[uid].count("\n"):
                line, column = line + texts[uid].count("\n"), 0
    return FilmLayout(places, line + 1, columns)


def _words(order: list[int], texts: dict[int, str]) -> Iterator[list[int]]:
    """Yield runs of positions without a break between them: a break is a space or a line end."""
    word: list[int] = []
    for uid in order:
        starts = texts[uid][:1] in {" ", "\n", "∎", ""}
        if word and (starts or texts[word[-1]][-1:] in {" ", "\n"}):
            yield word
            word = []
        word.append(uid)
    if word:
        yield word
