"""The canvas as rich text, and a live picture of a decode.

Colors are those of LLaDA's and Dream's demos; beside each is a cue that needs no color:

    undecided   a shaded cell, dark gray      (a darker shade where a token was taken back)
    new         bold and underlined, red below 0.3 confidence, orange below 0.7, else green
    older       plain, blue
    end         one dim mark for a run of end-of-text tokens, with their number
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from unmask.canvas import Canvas
from unmask.engine.scheduler import Event
from unmask.engine.sequence import SequenceState
from unmask.engine.token_text import TokenTexts, printable

OPEN, REOPENED, END, RETURN = "░", "▒", "∎", "↵"
OPEN_STYLE = "#444444"
REOPENED_STYLE = "#888888"
OLD_STYLE = "#6699CC"
TAIL_STYLE = "dim"
LOW, MIDDLE, HIGH = "#FF6666", "#FFAA33", "#66CC66"
LOW_BELOW, MIDDLE_BELOW = 0.3, 0.7
CHROME_LINES = 3
"""Lines of a frame that are not canvas."""


def new_style(confidence: float) -> str:
    """The style of a token committed a moment ago."""
    color = LOW if confidence < LOW_BELOW else MIDDLE if confidence < MIDDLE_BELOW else HIGH
    return f"bold underline {color}"


@dataclass(frozen=True)
class Changes:
    """What a forward changed, in positions of the canvas after it: new tokens by confidence, reopened."""

    fresh: Mapping[int, float] = field(default_factory=dict)
    reopened: frozenset[int] = frozenset()

    @classmethod
    def of(cls, event: Event) -> Changes:
        """Of an event; positions are followed by identity through insertions and deletions."""
        before, after, edit = event.before, event.sequence.canvas, event.edit
        position_of = {uid: position for position, uid in enumerate(after.uid.tolist())}
        confidence = dict.fromkeys(before.uid[edit.replace].tolist(), MIDDLE_BELOW)
        confidence.update(
            zip(before.uid[edit.commit].tolist(), edit.confidence.tolist(), strict=True)
        )
        taken = before.uid[edit.remask].tolist()
        return cls(
            {position_of[uid]: p for uid, p in confidence.items() if uid in position_of},
            frozenset(position_of[uid] for uid in taken if uid in position_of),
        )


def shown_from(canvas: Canvas) -> int:
    """The first position to show: the answer's, or the text's when it has blanks inside."""
    return 0 if canvas.fixed[canvas.prompt_length :].any() else canvas.prompt_length


def _cells(
    canvas: Canvas, changes: Changes, pieces: TokenTexts, stop_ids: frozenset[int]
) -> Iterator[tuple[str, str]]:
    """(text, style) of each shown position; end tokens as the empty text."""
    start, ended = shown_from(canvas), False
    for position, text in enumerate(pieces.of_positions(canvas, start), start):
        token = int(canvas.tokens[position])
        if canvas.open[position]:
            reopened = position in changes.reopened
            yield (REOPENED, REOPENED_STYLE) if reopened else (OPEN, OPEN_STYLE)
        elif canvas.fixed[position]:
            if token not in pieces.special and text:
                yield text, ""
        else:
            is_end = token in stop_ids
            ended = ended or is_end
            if position in changes.fresh:
                style = new_style(changes.fresh[position])
            else:
                style = TAIL_STYLE if ended else OLD_STYLE
            if is_end or text:
                yield "" if is_end else text, style


def canvas_text(
    canvas: Canvas, changes: Changes, pieces: TokenTexts, stop_ids: frozenset[int] = frozenset()
) -> Text:
    """The canvas as styled text. A new line end shows a mark; a run of end tokens is one mark."""
    shown = Text(no_wrap=False, overflow="fold")
    run, run_style = 0, ""
    for text, style in [*_cells(canvas, changes, pieces, stop_ids), ("x", "")]:
        if run and (text or style != run_style):
            shown.append(END + (f"×{run}" if run > 1 else ""), run_style)
            run = 0
        if not text:
            run, run_style = run + 1, style
            continue
        safe = printable(text)
        shown.append(safe.replace("\n", RETURN + "\n") if "underline" in style else safe, style)
    return shown[:-1]


def wrapped(text: Text, width: int) -> list[Text]:
    """Lines of at most `width` cells: broken at spaces, and between shaded cells."""
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
    """At most `height` of the lines, around the first that holds a new token; and the first one's index."""
    if len(lines) <= height:
        return 0, lines
    focus = next((i for i, line in enumerate(lines) if _is_new(line)), 0)
    first = max(0, min(focus - height // 2, len(lines) - height))
    return first, lines[first : first + height]


def _is_new(line: Text) -> bool:
    return any("underline" in str(span.style) for span in line.spans)


def status_line(sequence: SequenceState) -> str:
    """Forwards, committed positions (those after the answer's end too) and their ratio so far."""
    forwards = sequence.num_forwards
    size = int((~sequence.canvas.fixed).sum())
    done = sum(len(step.committed) - len(step.remasked) for step in sequence.trace)
    ratio = done / forwards if forwards else 0.0
    return f"forward {forwards} · {done} of {size} positions committed · {ratio:.2f} a forward"


def legend() -> Text:
    """What the colors and marks mean, in one line."""
    shown = Text()
    parts = [
        (OPEN * 3, OPEN_STYLE, " undecided   "),
        ("new", new_style(0.0), f" below {LOW_BELOW} sure   "),
        ("new", new_style(0.5), f" below {MIDDLE_BELOW}   "),
        ("new", new_style(1.0), " surer   "),
        ("older", OLD_STYLE, "   "),
        (END, TAIL_STYLE, " end"),
    ]
    for word, style, rest in parts:
        shown.append(word, style).append(rest)
    return shown


class LiveView:
    """A picture of one decode that is redrawn in place and gone at the end.

    `fps` is the most frames a second, a frame a forward; None draws as fast as the model decodes.
    """

    def __init__(
        self, console: Console, pieces: TokenTexts, stop_ids: frozenset[int], fps: float | None
    ) -> None:
        self._console, self._pieces, self._stop_ids = console, pieces, stop_ids
        self._delay = 1.0 / fps if fps else 0.0
        self._shown_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
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

    def begin(self, canvas: Canvas) -> None:
        """Show the canvas before the first forward."""
        self._draw(self.frame(canvas, Changes(), "forward 0"))

    def show(self, event: Event) -> None:
        """Show an event, not sooner than the frame before allows."""
        canvas = event.sequence.canvas
        self._draw(self.frame(canvas, Changes.of(event), status_line(event.sequence)))

    def show_text(self, text: Text, status: str) -> None:
        """Show a canvas that is styled text already, at the same pace."""
        self._draw(self.picture(text, status))

    def frame(self, canvas: Canvas, changes: Changes, status: str) -> RenderableType:
        """The picture of a canvas."""
        text = canvas_text(canvas, changes, self._pieces, self._stop_ids)
        return self.picture(text, status)

    def picture(self, text: Text, status: str) -> RenderableType:
        """Styled text with a line below, no taller than the terminal."""
        width, height = self._console.size
        lines = wrapped(text, max(1, width))
        first, visible = window(lines, max(1, height - CHROME_LINES))
        if len(visible) < len(lines):
            status += f" · lines {first + 1}-{first + len(visible)} of {len(lines)}"
        note = Text(status, style="dim", no_wrap=True, overflow="ellipsis")
        for line in visible:
            line.no_wrap, line.overflow = True, "crop"
        return Group(*visible, Text(), note)

    def _draw(self, frame: RenderableType) -> None:
        self._wait()
        self._live.update(frame, refresh=True)
        self._shown_at = time.perf_counter()

    def _wait(self) -> None:
        left = self._shown_at + self._delay - time.perf_counter()
        if left > 0:
            time.sleep(left)
