"""A film in the terminal: redrawn in place, or printed frame by frame where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from unmask.pictures.cells import FilmCell, FilmFrame, Frames, about
from unmask.plain_text import printable
from unmask.view.terminal import (
    MIDDLE_BELOW,
    OLD_STYLE,
    OPEN,
    OPEN_STYLE,
    REOPENED,
    REOPENED_STYLE,
    RETURN,
    TAIL_STYLE,
    Cell,
    FramePlayer,
    cells_text,
    new_style,
)


def play(film: Frames, console: Console, fps: float) -> None:
    """Draw the frames at `fps` per second; the last one stays, with the alternatives that the trace has."""
    with FramePlayer(console, fps) as player:
        for frame in film.frames:
            player.show_text(cells_text(frame_cells(frame)), film.status(frame))
    console.print(cells_text(frame_cells(film.frames[-1])))
    for line in likeliest_lines(film.frames[-1]):
        console.print(line, markup=False, style="dim")


def plain_frames(film: Frames) -> Iterator[str]:
    """Yield the text of every frame after its status line, and the alternatives of its new tokens."""
    for frame in film.frames:
        lines = "".join(f"{line}\n" for line in likeliest_lines(frame, only_new=True))
        yield f"{film.status(frame)}\n{cells_text(frame_cells(frame)).plain}\n{lines}"


def likeliest_lines(frame: FilmFrame, *, only_new: bool = False) -> Iterator[str]:
    """Yield a line for every decided position whose alternatives are known, or the new ones of them."""
    for position, cell in enumerate(frame.cells):
        is_chosen = cell.kind == "new" or (not only_new and cell.kind == "old")
        if is_chosen and cell.written is not None and cell.written.likeliest:
            yield f"  {about(cell, position)}"


def frame_cells(frame: FilmFrame) -> Iterator[Cell]:
    """Yield text and style of every position, in the style of the live canvas."""
    for cell in frame.cells:
        yield _cell(cell)


def _cell(cell: FilmCell) -> Cell:
    if cell.is_open:
        again = cell.kind == "again"
        return (REOPENED, REOPENED_STYLE) if again else (OPEN, OPEN_STYLE)
    if cell.kind == "fixed":
        return printable(cell.text), ""
    is_new = cell.kind == "new"
    if is_new:
        confidence = None if cell.written is None else cell.written.confidence
        style = new_style(MIDDLE_BELOW if confidence is None else confidence)
    else:
        style = TAIL_STYLE if cell.is_end else OLD_STYLE
    text = printable(cell.text)
    shown = text.replace("\n", RETURN + "\n") if is_new else text
    return None if cell.is_end else shown, style
