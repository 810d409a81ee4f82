"""A film as an animated GIF. Needs Pillow and a monospaced font, which the extra `plot` installs."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError, DependencyError
from unmask.pictures.cells import FilmFrame, Frames, shown_text
from unmask.pictures.colors import (
    AGAIN,
    BACKGROUND,
    END,
    NEW,
    NOTE,
    OLD,
    OPEN,
    TEXT,
    fill_color,
    text_color,
)
from unmask.pictures.layout import FilmLayout, layout_of
from unmask.plain_text import printable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw as Drawing
    from PIL.ImageFont import FreeTypeFont

FONT_SIZE, MARGIN = 16, 14
MAX_PIXELS = 40_000_000
"""Largest picture, so that a long film does not fill the memory."""
PALETTE = (BACKGROUND, OPEN, AGAIN, TEXT, OLD, END, NOTE, *NEW.values())
NUM_SHADES = 6
"""Shades of every color on the background, for smooth letters."""


def gif_of(
    film: Frames,
    *,
    columns: int = 80,
    frame_s: float = 0.25,
    hold_s: float = 2.0,
    font: Path | None = None,
    max_total: int | None = None,
) -> bytes:
    """Return the GIF; a frame lasts `frame_s` seconds, the last one `hold_s` more. It repeats without end.

    `font`: a TrueType or OpenType file with letters of one width (default: DejaVu Sans Mono, which has no
    Chinese, Japanese or Korean). `max_total`: largest number of pixels of all frames. Raises ConfigError
    and DependencyError.
    """
    stage = _Stage(layout_of(film, columns), font, has_title=bool(film.title))
    total = stage.width * stage.height * len(film.frames)
    if max_total is not None and total > max_total:
        raise ConfigError(
            f"the {len(film.frames)} frames of this GIF would have {total} pixels, more than {max_total}; "
            f"use an SVG or a page instead"
        )
    pictures = [stage.picture(film, frame) for frame in film.frames]
    durations = [max(20, round(1000 * frame_s))] * len(pictures)
    durations[-1] += round(1000 * hold_s)
    file = io.BytesIO()
    first, *rest = pictures
    first.save(
        file,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=durations,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return file.getvalue()


def _load_font(path: Path | None) -> FreeTypeFont:
    """Load a font. Raises ConfigError for a file that is none, DependencyError without Pillow."""
    try:
        from PIL import ImageFont
    except ImportError:
        raise DependencyError(
            "a GIF needs Pillow: pip install 'unmask[plot]', or use .svg or .html"
        ) from None
    if path is not None:
        try:
            return ImageFont.truetype(str(path), FONT_SIZE)
        except OSError as error:
            raise ConfigError(
                f"font {str(path)!r} is no readable TrueType or OpenType file ({error}); give another"
            ) from None
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        raise DependencyError(
            "a GIF needs a font: pip install 'unmask[plot]' (which has one), or give font=FILE"
        )
    fonts = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), FONT_SIZE)


class _Stage:
    """Font, palette and measures of the pictures of a film."""

    def __init__(self, layout: FilmLayout, font: Path | None, *, has_title: bool) -> None:
        self.layout, self.font = layout, _load_font(font)
        self.cell_width = self.font.getlength("0" * 10) / 10
        ascent, descent = self.font.getmetrics()
        self.line_height = ascent + descent + 4
        self.top = MARGIN + (self.line_height if has_title else 0)
        self.width = round(2 * MARGIN + layout.columns * self.cell_width)
        self.height = self.top + MARGIN + (layout.num_lines + 2) * self.line_height
        if self.width * self.height > MAX_PIXELS:
            raise ConfigError(
                f"the picture would have {self.width} x {self.height} pixels; use more columns or .html"
            )
        self.palette = self._palette()

    def _palette(self) -> Picture:
        from PIL import Image, ImageColor

        base = ImageColor.getrgb(BACKGROUND)
        colors: list[int] = []
        for name in PALETTE:
            goal = ImageColor.getrgb(name)
            for shade in range(1, NUM_SHADES + 1):
                share = shade / NUM_SHADES
                colors += [round(a + (b - a) * share) for a, b in zip(base, goal, strict=True)]
        palette = Image.new("P", (1, 1))
        palette.putpalette(colors)
        return palette

    def picture(self, film: Frames, frame: FilmFrame) -> Picture:
        """Draw a frame."""
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", (self.width, self.height), BACKGROUND)
        drawing = ImageDraw.Draw(picture)
        if film.title:
            self._write(drawing, MARGIN, MARGIN, film.title, NOTE)
        for cell in frame.cells:
            place = self.layout.places[cell.uid]
            x = MARGIN + place.column * self.cell_width
            y = self.top + place.line * self.line_height
            if cell.is_open:
                right = x + place.width * self.cell_width - 2
                box = (x, y + 2, right, y + self.line_height - 4)
                drawing.rounded_rectangle(box, 2, fill=fill_color(cell))
                continue
            color = text_color(cell)
            self._write(drawing, x, y, shown_text(cell), color)
            if cell.kind == "new":
                under = y + self.line_height - 3
                drawing.line(
                    (x, under, x + place.width * self.cell_width - 2, under), fill=color, width=2
                )
        last = self.top + (self.layout.num_lines + 1) * self.line_height
        self._write(drawing, MARGIN, last, film.status(frame), NOTE)
        return picture.quantize(palette=self.palette, dither=Image.Dither.NONE)

    def _write(self, drawing: Drawing, x: float, y: float, text: str, color: str) -> None:
        drawing.text((x, y), printable(text), fill=color, font=self.font)
