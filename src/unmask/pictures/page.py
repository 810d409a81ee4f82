"""A film as one HTML file with a slider: no network, and the model's text is never parsed as markup."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TypedDict

from unmask.pictures.cells import FilmCell, Frames, Written, about, shown_text
from unmask.plain_text import printable, script_json

PLAYER = Path(__file__).parent / "player.html"
"""The page; `FILM_DATA` in it stands for the film."""
MARK = "/*FILM_DATA*/null"
KINDS = ("open", "again", "new", "old", "fixed")

PageCell = tuple[int, str, int, int, int, float | None, list[tuple[str, int, float | None]]]
"""Identity, text, index into KINDS, 1 for an end, forward (0: none), probability, earlier tokens."""


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
                        [(old.text, old.forward, _rounded(old.confidence)) for old in cell.earlier],
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
