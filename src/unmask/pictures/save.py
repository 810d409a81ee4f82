"""Files of a film, by the ending of their name."""

from __future__ import annotations

from pathlib import Path

from unmask.durable import check_writable
from unmask.errors import ConfigError
from unmask.pictures.cells import Frames

ENDINGS = (".gif", ".svg", ".html")
MAX_FPS = 50.0
"""Fastest film: viewers of GIFs slow down frames of less than 20 ms."""


def check_picture(path: Path, endings: tuple[str, ...] = ENDINGS) -> None:
    """Raise ConfigError when no picture can be written at `path`. Writes nothing."""
    if path.suffix.lower() not in endings:
        raise ConfigError(f"picture {str(path)!r} must end in {' or '.join(endings)}")
    check_writable(path, "picture")


def save_film(
    film: Frames,
    path: str | Path,
    *,
    columns: int = 80,
    fps: float = 4.0,
    hold_s: float = 2.0,
    font: str | Path | None = None,
) -> Path:
    """Write a film as .gif, .svg or .html, by the ending of `path`, and return the path.

    `fps`: frames (forwards) per second, above 0 and at most 50; `hold_s`: seconds, at least 0, that the
    last frame stays; `columns`: width in characters (both not for .html, which has a slider and wraps).
    `font`: a font file for a .gif. An existing file is replaced. Raises ConfigError and DependencyError.
    """
    target = Path(path).expanduser()
    check_picture(target)
    ending = target.suffix.lower()
    if not 0 < fps <= MAX_FPS:
        raise ConfigError(f"fps={fps:g} must be above 0 and at most {MAX_FPS:g}")
    if not 0 <= hold_s <= 60:
        raise ConfigError(f"hold_s={hold_s:g} must be between 0 and 60 seconds")
    if font is not None and ending != ".gif":
        raise ConfigError(f"font has no effect on {ending}; leave it out")
    if ending == ".gif":
        from unmask.pictures.gif import gif_of

        file = None if font is None else Path(font).expanduser()
        target.write_bytes(gif_of(film, columns=columns, frame_s=1 / fps, hold_s=hold_s, font=file))
    elif ending == ".svg":
        from unmask.pictures.svg import svg_of

        svg = svg_of(film, columns=columns, frame_s=1 / fps, hold_s=hold_s)
        target.write_text(svg, encoding="utf-8")
    else:
        from unmask.pictures.page import html_of

        target.write_text(html_of(film), encoding="utf-8")
    return target
