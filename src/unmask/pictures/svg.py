"""A film as one animated SVG: without animation it is the last frame."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from unmask.pictures.cells import FilmCell, Frames, about, shown_text
from unmask.pictures.colors import BACKGROUND, NOTE, fill_color, text_color
from unmask.pictures.layout import FilmLayout, Place, layout_of
from unmask.plain_text import printable

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN = 8.4, 22.0, 14.0, 14.0
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def svg_of(film: Frames, *, columns: int = 80, frame_s: float = 0.25, hold_s: float = 2.0) -> str:
    """Return the SVG; a frame lasts `frame_s` seconds, the last one `hold_s` more."""
    layout = layout_of(film, columns)
    clock = _Clock(len(film.frames), frame_s, hold_s)
    width = 2 * MARGIN + columns * CELL_WIDTH
    lines = layout.num_lines + 2 + bool(film.title)
    height = 2 * MARGIN + lines * LINE_HEIGHT
    label = escape(printable(film.title or "decode"), {'"': "&quot;"})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{label}" '
        f'font-family="{FONTS}" font-size="{FONT_SIZE:g}" xml:space="preserve">',
        f'<rect width="100%" height="100%" rx="6" fill="{BACKGROUND}"/>',
    ]
    top = MARGIN
    if film.title:
        parts.append(_text(MARGIN, top, film.title, NOTE))
        top += LINE_HEIGHT
    parts += _positions(film, layout, clock, top)
    bottom = top + (layout.num_lines + 1) * LINE_HEIGHT
    for number, frame in enumerate(film.frames):
        line = _text(MARGIN, bottom, film.status(frame), NOTE)
        parts.append(clock.shown(line, number, number + 1))
    return "\n".join([*parts, "</svg>\n"])


class _Clock:
    """The times of the frames, as animations of visibility that repeat without end."""

    def __init__(self, num_frames: int, frame_s: float, hold_s: float) -> None:
        self.num_frames, self.frame_s = num_frames, frame_s
        self.total_s = num_frames * frame_s + hold_s

    def shown(self, content: str, first: int, end: int) -> str:
        """Return content that is visible in the frames `[first, end)`."""
        if first == 0 and end == self.num_frames:
            return content
        marks = [(0.0, first == 0)]
        if first:
            marks.append((first * self.frame_s / self.total_s, True))
        if end < self.num_frames:
            marks.append((end * self.frame_s / self.total_s, False))
        values = ";".join("visible" if visible else "hidden" for _, visible in marks)
        times = ";".join(f"{time:.4f}".rstrip("0").rstrip(".") for time, _ in marks)
        still = "" if end == self.num_frames else ' visibility="hidden"'
        return (
            f'<g{still}><animate attributeName="visibility" calcMode="discrete" values="{values}" '
            f'keyTimes="{times}" dur="{self.total_s:g}s" repeatCount="indefinite"/>{content}</g>'
        )


def _positions(film: Frames, layout: FilmLayout, clock: _Clock, top: float) -> Iterator[str]:
    """Yield every state of every position, visible while it lasts."""
    states: dict[int, tuple[FilmCell, int, int]] = {}
    for number, frame in enumerate(film.frames):
        present = {cell.uid for cell in frame.cells}
        for uid in [uid for uid in states if uid not in present]:
            yield _state(*states.pop(uid), number, layout, clock, top)
        for index, cell in enumerate(frame.cells):
            if cell.uid in states:
                if states[cell.uid][0] == cell:
                    continue
                yield _state(*states.pop(cell.uid), number, layout, clock, top)
            states[cell.uid] = cell, index, number
    for state in states.values():
        yield _state(*state, clock.num_frames, layout, clock, top)


def _state(
    cell: FilmCell, index: int, first: int, end: int, layout: FilmLayout, clock: _Clock, top: float
) -> str:
    place = layout.places[cell.uid]
    x, y = MARGIN + place.column * CELL_WIDTH, top + place.line * LINE_HEIGHT
    hint = f"<title>{escape(printable(about(cell, index)))}</title>"
    if cell.is_open:
        return clock.shown(_box(cell, place, x, y, hint), first, end)
    weight = ' font-weight="bold"' if cell.kind == "new" else ""
    return clock.shown(_text(x, y, shown_text(cell), text_color(cell), weight, hint), first, end)


def _box(cell: FilmCell, place: Place, x: float, y: float, hint: str) -> str:
    width = place.width * CELL_WIDTH - 1.5
    return (
        f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="{LINE_HEIGHT - 5:g}" rx="2" '
        f'fill="{fill_color(cell)}">{hint}</rect>'
    )


def _text(x: float, y: float, text: str, color: str, more: str = "", hint: str = "") -> str:
    # a leading space is drawn by position: not every viewer preserves it
    indent = len(text) - len(text.lstrip(" "))
    shown = escape(printable(text.lstrip(" ")))
    left = x + indent * CELL_WIDTH
    base = y + LINE_HEIGHT * 0.7
    return f'<text x="{left:.1f}" y="{base:.1f}" fill="{color}"{more}>{hint}{shown}</text>'
