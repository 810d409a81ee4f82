"""Canvases as rich text, and a live display of a decode.

Colors are those of LLaDA's and Dream's demos; each has a cue that needs no color:

    undecided   a shaded cell, dark gray      (a darker shade where a token was remasked)
    new         bold and underlined, red below 0.3 confidence, orange below 0.7, else green
    older       plain, blue
    end         one dim mark for a run of end-of-text tokens, with their number
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from unmask.canvas import Canvas
from unmask.engine.scheduler import Event
from unmask.engine.sequence import SequenceState
from unmask.engine.token_text import TokenTexts
from unmask.plain_text import printable

if TYPE_CHECKING:
    from typing_extensions import Self

OPEN, REOPENED, END, RETURN = "░", "▒", "∎", "↵"
OPEN_STYLE = "#444444"
REOPENED_STYLE = "#888888"
OLD_STYLE = "#6699CC"
TAIL_STYLE = "dim"
LOW, MIDDLE, HIGH = "#FF6666", "#FFAA33", "#66CC66"
LOW_BELOW, MIDDLE_BELOW = 0.3, 0.7
CHROME_LINES = 3
"""Lines of a frame below the canvas."""

Cell = tuple[str | None, str]
"""Text (None: an end token) and style of a position."""


def new_style(confidence: float) -> str:
    """Return the style of a token that the last forward committed."""
    color = LOW if confidence < LOW_BELOW else MIDDLE if confidence < MIDDLE_BELOW else HIGH
    return f"bold underline {color}"


@dataclass(frozen=True)
class Changes:
    """Changes of a forward, in positions of the canvas after it.

    `fresh`: confidence of each new token by position; `reopened`: remasked positions.
    """

    fresh: Mapping[int, float] = field(default_factory=dict)
    reopened: frozenset[int] = frozenset()

    @classmethod
    def of(cls, event: Event) -> Changes:
        """Return the changes of an event, following positions through insertions and deletions."""
        before, after, edit = event.before, event.sequence.canvas, event.edit
        position_of = {uid: position for position, uid in enumerate(after.uid.tolist())}
        confidence = dict.fromkeys(before.uid[edit.replace].tolist(), MIDDLE_BELOW)
        confidence.update(
            zip(before.uid[edit.commit].tolist(), edit.confidence.tolist(), strict=True)
        )
        remasked = before.uid[edit.remask].tolist()
        return cls(
            {position_of[uid]: p for uid, p in confidence.items() if uid in position_of},
            frozenset(position_of[uid] for uid in remasked if uid in position_of),
        )


def first_shown(canvas: Canvas) -> int:
    """Return the first position to show: that of the answer, or 0 for a text with blanks inside it."""
    return 0 if canvas.fixed[canvas.prompt_length :].any() else canvas.prompt_length


def canvas_text(
    canvas: Canvas, changes: Changes, pieces: TokenTexts, stop_ids: frozenset[int] = frozenset()
) -> Text:
    """Render a canvas as styled text; a new line end has a mark, a run of end tokens is one mark."""
    return cells_text(_canvas_cells(canvas, changes, pieces, stop_ids))


def _canvas_cells(
    canvas: Canvas, changes: Changes, pieces: TokenTexts, stop_ids: frozenset[int]
) -> Iterator[Cell]:
    start, is_tail = first_shown(canvas), False
    for position, text in enumerate(pieces.of_positions(canvas, start), start):
        token = int(canvas.tokens[position])
        if canvas.open[position]:
            reopened = position in changes.reopened
            yield (REOPENED, REOPENED_STYLE) if reopened else (OPEN, OPEN_STYLE)
        elif canvas.fixed[position]:
            if token not in pieces.special and text:
                yield printable(text), ""
        else:
            is_end = token in stop_ids
            is_tail = is_tail or is_end
            if position in changes.fresh:
                style = new_style(changes.fresh[position])
            else:
                style = TAIL_STYLE if is_tail else OLD_STYLE
            if is_end or text:
                yield None if is_end else _marked(text, position in changes.fresh), style


class _FrameToken(TypedDict):
    open: bool
    new: bool
    text: str
    confidence: float | None


class FramePosition(_FrameToken, total=False):
    """A position of a `CanvasFrame`, as the server sends it."""

    end: bool
    fixed: bool
    taken_back: bool


class CanvasFrame(TypedDict):
    """The canvas after a forward, as a server sends it with `stream_mode="canvas"`."""

    forward: int
    num_open: int
    slots: list[FramePosition]


def frame_text(frame: CanvasFrame) -> Text:
    """Render a server's canvas frame in the style of `canvas_text`."""
    return cells_text(map(_frame_cell, frame["slots"]))


def _frame_cell(position: FramePosition) -> Cell:
    if position["open"]:
        reopened = position.get("taken_back")
        return (REOPENED, REOPENED_STYLE) if reopened else (OPEN, OPEN_STYLE)
    is_new = position["new"] and not position.get("fixed")
    if position.get("fixed"):
        style = ""
    elif is_new:
        confidence = position["confidence"]
        style = new_style(MIDDLE_BELOW if confidence is None else confidence)
    else:
        style = TAIL_STYLE if position.get("end") else OLD_STYLE
    return None if position.get("end") else _marked(position["text"], is_new), style


def frame_status(frame: CanvasFrame) -> str:
    """Return the number of forwards and of decided positions of a canvas frame."""
    size = len(frame["slots"])
    return f"forward {frame['forward']} · {size - frame['num_open']} of {size} positions"


def _marked(text: str, is_new: bool) -> str:
    safe = printable(text)
    return safe.replace("\n", RETURN + "\n") if is_new else safe


def cells_text(cells: Iterable[Cell]) -> Text:
    """Join cells; end tokens in a row with one style become one mark with their number."""
    rendered = Text(no_wrap=False, overflow="fold")
    for (is_end, end_style), run in itertools.groupby(
        cells, key=lambda cell: (cell[0] is None, cell[1] if cell[0] is None else "")
    ):
        if is_end:
            count = len(list(run))
            rendered.append(END + (f"×{count}" if count > 1 else ""), end_style)
        else:
            for text, style in run:
                rendered.append(text or "", style)
    return rendered


def wrap(text: Text, width: int) -> list[Text]:
    """Break text into lines of at most `width` cells, at spaces and between shaded cells."""
    lines: list[Text] = []
    for paragraph in text.split("\n", allow_blank=True):
        plain, start, at, used, breakable = paragraph.plain, 0, 0, 0, 0
        cuts: list[int] = []
        for at, char in enumerate(plain):
            size = cell_len(char)
            if used + size > width:
                cut = breakable if breakable > start else at
                cuts.append(cut)
                start, used = cut, cell_len(plain[cut:at])
            used += size
            if char in " " + OPEN + REOPENED or plain[at + 1 : at + 2] in (OPEN, REOPENED):
                breakable = at + 1
        lines.extend(paragraph.divide(cuts))
    return lines


def window(lines: list[Text], height: int) -> tuple[int, list[Text]]:
    """Return at most `height` lines around the first new token, after the index of the first of them."""
    if len(lines) <= height:
        return 0, lines
    focus = next((i for i, line in enumerate(lines) if _is_new(line)), 0)
    first = max(0, min(focus - height // 2, len(lines) - height))
    return first, lines[first : first + height]


def _is_new(line: Text) -> bool:
    return any("underline" in str(span.style) for span in line.spans)


def status_line(sequence: SequenceState) -> str:
    """Return forwards, committed positions (those after the end of the answer too) and their ratio."""
    forwards = sequence.num_forwards
    size = int((~sequence.canvas.fixed).sum())
    done = sum(len(step.committed) - len(step.remasked) for step in sequence.trace)
    ratio = done / forwards if forwards else 0.0
    return f"forward {forwards} · {done} of {size} positions committed · {ratio:.2f} a forward"


def legend() -> Text:
    """Return the meaning of colors and marks in one line."""
    line = Text()
    parts = [
        (OPEN * 3, OPEN_STYLE, " undecided   "),
        ("new", new_style(0.0), f" below {LOW_BELOW} sure   "),
        ("new", new_style(0.5), f" below {MIDDLE_BELOW}   "),
        ("new", new_style(1.0), " surer   "),
        ("older", OLD_STYLE, "   "),
        (END, TAIL_STYLE, " end"),
    ]
    for word, style, rest in parts:
        line.append(word, style).append(rest)
    return line


class FramePlayer:
    """Context manager with a live display of frames, redrawn in place and erased at the end.

    `fps`: maximum number of frames per second; None draws every frame at once.
    """

    def __init__(self, console: Console, fps: float | None) -> None:
        self._console = console
        self._delay = 1.0 / fps if fps else 0.0
        self._drawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._wait()
        self._live.__exit__(kind, value, traceback)

    def show_text(self, text: Text, status: str) -> None:
        """Draw styled text with a status line below it, waiting as `fps` requires."""
        self._wait()
        self._live.update(self.frame(text, status), refresh=True)
        self._drawn_at = time.perf_counter()

    def frame(self, text: Text, status: str) -> RenderableType:
        """Return styled text with a status line, no taller than the terminal."""
        width, height = self._console.size
        lines = wrap(text, max(1, width))
        first, visible = window(lines, max(1, height - CHROME_LINES))
        if len(visible) < len(lines):
            status += f" · lines {first + 1}-{first + len(visible)} of {len(lines)}"
        note = Text(status, style="dim", no_wrap=True, overflow="ellipsis")
        for line in visible:
            line.no_wrap, line.overflow = True, "crop"
        return Group(*visible, Text(), note)

    def _wait(self) -> None:
        left = self._drawn_at + self._delay - time.perf_counter()
        if left > 0:
            time.sleep(left)


class LiveView(FramePlayer):
    """Live display of one decode, one frame per forward; None as `fps` draws as fast as it decodes."""

    def __init__(
        self, console: Console, pieces: TokenTexts, stop_ids: frozenset[int], fps: float | None
    ) -> None:
        super().__init__(console, fps)
        self._pieces, self._stop_ids = pieces, stop_ids

    def begin(self, canvas: Canvas) -> None:
        """Draw the canvas before the first forward."""
        self.show_text(self._text(canvas, Changes()), "forward 0")

    def show(self, event: Event) -> None:
        """Draw the canvas after a forward, waiting as `fps` requires."""
        text = self._text(event.sequence.canvas, Changes.of(event))
        self.show_text(text, status_line(event.sequence))

    def _text(self, canvas: Canvas, changes: Changes) -> Text:
        return canvas_text(canvas, changes, self._pieces, self._stop_ids)
