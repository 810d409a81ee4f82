"""Colors of a picture: those of the live canvas, on a dark background."""

from __future__ import annotations

from unmask.pictures.cells import FilmCell, level

BACKGROUND, OPEN, AGAIN = "#15181D", "#343A44", "#7A5A2E"
"""Fills: the picture, an undecided position, one that was remasked."""
TEXT, OLD, END, NOTE = "#D8DCE3", "#79A8D8", "#5C6470", "#8B94A1"
"""Given text, tokens written earlier, ends of the answer, title and status line."""
NEW = {"low": "#FF6B6B", "middle": "#FFB347", "high": "#6FD66F"}
"""Tokens that the last forward wrote, by confidence."""


def text_color(cell: FilmCell) -> str:
    """Return the color of a decided position's text."""
    if cell.kind == "new":
        return NEW[level(cell)]
    if cell.kind == "fixed":
        return TEXT
    return END if cell.is_end else OLD


def fill_color(cell: FilmCell) -> str:
    """Return the color of an undecided position's box."""
    return AGAIN if cell.kind == "again" else OPEN
