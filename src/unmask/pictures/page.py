"""A film as one HTML file with a slider: no network, and the model's text is never parsed as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypedDict, cast, get_args

from unmask.errors import ConfigError
from unmask.pictures.cells import CellKind, FilmCell, FilmFrame, Frames, Written, about, shown_text
from unmask.plain_text import printable, script_json

PLAYER = Path(__file__).parent / "player.html"
"""The page; `FILM_DATA` in it stands for the film."""
MARK = "/*FILM_DATA*/null"
KINDS: tuple[CellKind, ...] = get_args(CellKind)
MAX_FRAMES, MAX_CELLS, MAX_POSITIONS, MAX_CHARS = 2000, 4096, 400_000, 4_000_000
"""Limits of a film from elsewhere: frames, distinct positions, and positions and characters in all."""

Likeliest = list[tuple[str, float]]
PageCell = tuple[
    int, str, int, int, int, float | None, list[tuple[str, int, float | None, Likeliest]], Likeliest
]
"""Identity, text, index into KINDS, 1 for an end, forward (0: none), probability, earlier tokens, and the
likeliest tokens when it was written. An earlier token has text, forward, probability and likeliest ones."""


class FilmData(TypedDict):
    """A film as the page reads it: distinct cells, and for each frame the indices of its cells."""

    title: str
    prompt: str
    kinds: list[str]
    cells: list[PageCell]
    frames: list[tuple[int, int, list[int]]]


def data_of(film: Frames) -> FilmData:
    """Return a film as data for JSON; a frame is its forward, its queries, and its cells."""
    cells: dict[object, int] = {}
    rows: list[PageCell] = []
    frames: list[tuple[int, int, list[int]]] = []
    for frame in film.frames:
        indices = []
        for cell in frame.cells:
            if cell not in cells:
                cells[cell] = len(rows)
                written = cell.written or Written("", 0, None)
                rows.append(
                    (
                        cell.uid,
                        cell.text,
                        KINDS.index(cell.kind),
                        int(cell.is_end),
                        written.forward,
                        _rounded(written.confidence),
                        [
                            (old.text, old.forward, _rounded(old.confidence), _likeliest(old))
                            for old in cell.earlier
                        ],
                        _likeliest(written),
                    )
                )
            indices.append(cells[cell])
        frames.append((frame.forward, frame.num_queries, indices))
    return {
        "title": film.title,
        "prompt": film.prompt,
        "kinds": list(KINDS),
        "cells": rows,
        "frames": frames,
    }


def film_of_data(data: Mapping[str, object]) -> Frames:
    """Return the film that a page has as data; the reverse of `data_of`, without the likeliest tokens.

    Raises ConfigError for other data and for a film beyond the limits.
    """
    try:
        film = _read_film(data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"the film cannot be read ({type(error).__name__}: {error}); send what the page's player takes"
        ) from None
    num_positions = sum(len(frame.cells) for frame in film.frames)
    num_chars = sum(len(cell.text) for frame in film.frames for cell in frame.cells)
    num_cells = len({cell.uid for frame in film.frames for cell in frame.cells})
    for count, most, noun in (
        (len(film.frames), MAX_FRAMES, "frames"),
        (num_cells, MAX_CELLS, "distinct positions"),
        (num_positions, MAX_POSITIONS, "positions in all frames"),
        (num_chars, MAX_CHARS, "characters in all frames"),
    ):
        if count > most:
            raise ConfigError(
                f"the film has {count} {noun}; the most is {most}: use a page instead"
            )
    return film


def _read_film(data: Mapping[str, object]) -> Frames:
    cells = [_read_cell(row) for row in _list(data["cells"])]
    frames = []
    for row in _list(data["frames"]):
        forward, num_queries, indices = _list(row)
        shown = tuple(cells[_count(index)] for index in _list(indices))
        frames.append(FilmFrame(_count(forward), shown, _count(num_queries)))
    if not frames:
        raise ValueError("no frames")
    return Frames(tuple(frames), _text(data["title"]), _text(data["prompt"]))


def _read_cell(row: object) -> FilmCell:
    uid, text, kind, is_end, forward, confidence, *_ = _list(row)
    share = None if confidence is None else _share(confidence)
    written = Written(_text(text), _count(forward), share) if _count(forward) else None
    return FilmCell(_count(uid), _text(text), KINDS[_count(kind)], bool(is_end), written)


def _list(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} in place of a list")
    return cast("list[object]", value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("something else in place of a count")
    return value


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise TypeError("something else in place of a probability")
    return float(value)


def _likeliest(written: Written) -> Likeliest:
    return [(text, round(share, 4)) for text, share in written.likeliest]


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, 4)


def html_of(film: Frames) -> str:
    """Return the page of a film, one file that loads nothing else."""
    return PLAYER.read_text("utf-8").replace(MARK, script_json(data_of(film)))


def frame_of_page(film: Frames, height: int = 420) -> str:
    """Return the page of a film inside an `iframe` of `height` pixels, for a notebook."""
    page = escape(html_of(film), quote=True)
    return (
        f'<iframe srcdoc="{page}" width="100%" height="{height}" sandbox="allow-scripts" '
        f'style="border:1px solid #8884;border-radius:6px"></iframe>'
    )


def still_of(film: Frames) -> str:
    """Return the last frame as HTML: each token in the color of its probability, its facts on hover."""
    cells = film.frames[-1].cells
    num_ends = sum(cell.is_end for cell in cells)
    first_end = next((i for i, cell in enumerate(cells) if cell.is_end), len(cells))
    spans = []
    for index, cell in enumerate(cells):
        if cell.is_end and index > first_end:
            continue
        more = f"×{num_ends}" if cell.is_end and num_ends > 1 else ""
        shown = "░" if cell.is_open else shown_text(cell) if cell.is_end else cell.text
        hint = escape(printable(about(cell, index)), quote=True)
        spans.append(
            f'<span title="{hint}" style="{_style(cell)}">{escape(printable(shown))}{more}</span>'
        )
    return (
        '<div style="font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere">'
        + "".join(spans)
        + "</div>"
    )


def _style(cell: FilmCell) -> str:
    """Return the style of a token: from red for probability 0 to green for 1, readable on both themes."""
    if cell.written is None or cell.written.confidence is None or cell.is_end:
        return "opacity:0.75" if cell.is_end else ""
    return f"background:hsl({round(120 * cell.written.confidence)} 60% 78%);color:#111"
