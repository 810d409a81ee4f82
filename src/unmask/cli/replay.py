"""The command `unmask replay`: a trace file in the terminal or as a picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from unmask.cli.options import OUTPUT, flat
from unmask.errors import ConfigError
from unmask.options import option


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Files to write, and how the frames are drawn."""

    gif: Annotated[Path | None, option(metavar="FILE")] = None
    """Write an animated GIF (extra `plot`)."""

    svg: Annotated[Path | None, option(metavar="FILE")] = None
    """Write an animated SVG."""

    html: Annotated[Path | None, option(metavar="FILE")] = None
    """Write a page with a slider; a token under the pointer tells its forward and probability."""

    plot: Annotated[Path | None, option(metavar="FILE")] = None
    """Write a figure of tokens per forward and order: .png, .svg or .pdf (extra `plot`)."""

    fps: Annotated[float | None, option(metavar="N")] = None
    """Forwards per second of terminal, GIF and SVG, at most 50. Default: 4."""

    columns: Annotated[int | None, option(metavar="N")] = None
    """Width of GIF and SVG in characters. Default: 80."""

    font: Annotated[Path | None, option(metavar="FILE")] = None
    """Font file of the GIF. Default: DejaVu Sans Mono."""


def replay(
    trace: Annotated[Path, Parameter(name="TRACE")],
    /,
    *,
    pictures: Annotated[PictureOptions, flat(OUTPUT)] = PictureOptions(),
) -> None:
    """Show a decode again from its trace file: in the terminal, or as GIF, SVG, page or figure.

    The trace is written by `unmask generate ... --trace FILE`; no model is needed. Without a file to write,
    the frames are drawn in the terminal, or printed one after the other where there is none.
    """
    from unmask.pictures.save import ENDINGS, MAX_FPS, check_picture, save_film
    from unmask.view.trace import read_film

    files = [path for path in (pictures.gif, pictures.svg, pictures.html) if path is not None]
    for ending, path in zip(ENDINGS, (pictures.gif, pictures.svg, pictures.html), strict=True):
        if path is not None:
            check_picture(path, (ending,))
    if pictures.plot is not None:
        check_picture(pictures.plot, (".png", ".svg", ".pdf"))
    _refuse_unused(pictures)
    fps = 4.0 if pictures.fps is None else pictures.fps
    if not 0 < fps <= MAX_FPS:
        raise ConfigError(f"fps={fps:g} must be above 0 and at most {MAX_FPS:g}")
    film = read_film(trace)
    for path in files:
        font = pictures.font if path == pictures.gif else None
        save_film(film, path, columns=pictures.columns or 80, fps=fps, font=font)
    if pictures.plot is not None:
        film.plot().savefig(pictures.plot)
        files.append(pictures.plot)
    for path in files:
        print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)
    if files:
        return
    from unmask.view.replay import plain_frames, play

    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        play(film, console, fps)
        return
    if pictures.fps is not None:
        raise ConfigError("--fps has no effect without a terminal or a picture; leave it out")
    for text in plain_frames(film):
        print(text)


def _refuse_unused(pictures: PictureOptions) -> None:
    """Raise ConfigError for options without an effect on the files that are asked for."""
    has_film = pictures.gif is not None or pictures.svg is not None
    has_file = has_film or pictures.html is not None or pictures.plot is not None
    if pictures.columns is not None and not has_film:
        raise ConfigError("--columns is the width of --gif and --svg; leave it out or add one")
    if pictures.font is not None and pictures.gif is None:
        raise ConfigError("--font is the font of --gif; leave it out or add --gif FILE")
    if pictures.fps is not None and has_file and not has_film:
        raise ConfigError("--fps has no effect on a page or a figure; leave it out")
