"""The frames of a decode: its first canvas and the edits of its forwards, with the texts of the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from unmask.canvas import Canvas, Edit
from unmask.edit_rules import apply
from unmask.pictures.cells import CellKind, FilmCell, FilmFrame, Frames, Written

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PositionTexts(Protocol):
    """The texts of tokens, as `engine.token_text.TokenTexts` has them."""

    special: frozenset[int]

    def text(self, *ids: int) -> str:
        """Return the text of neighboring tokens."""

    def of_positions(self, canvas: Canvas, start: int) -> list[str]:
        """Return a text for every position from `start` on, empty for open ones."""


@dataclass(frozen=True, slots=True, repr=False)
class Film(Frames):
    """The frames of a decode, with the files and figures that show them; a notebook shows a player."""

    def __repr__(self) -> str:
        """Return a line with the title and the number of frames."""
        return f"Film({self.title!r}, {len(self.frames)} frames)"

    def save(
        self,
        path: str | Path,
        *,
        columns: int = 80,
        fps: float = 4.0,
        hold_s: float = 2.0,
        font: str | Path | None = None,
    ) -> Path:
        """Write a .gif, .svg or .html file, by the ending of `path`; options: `pictures.save.save_film`."""
        from unmask.pictures.save import save_film

        return save_film(self, path, columns=columns, fps=fps, hold_s=hold_s, font=font)

    def plot(self) -> Figure:
        """Return a figure: tokens per forward, and when each position was decided; see `figure_of`."""
        from unmask.pictures.plot import figure_of

        return figure_of(self)

    def _repr_html_(self) -> str:
        from unmask.pictures.page import frame_of_page

        return frame_of_page(self)


def film_of(
    canvas: Canvas,
    edits: Iterable[tuple[Edit, int]],
    texts: PositionTexts,
    end_ids: frozenset[int] = frozenset(),
    *,
    title: str = "",
    alternatives: Sequence[Mapping[int, Sequence[tuple[int, float]]]] = (),
) -> Film:
    """Return the film of a decode that began with `canvas`; `edits` are pairs of edit and queries.

    `alternatives`: by forward, ids and probabilities of the likeliest tokens of positions that it decided.
    Positions right of a decided end token that no forward has decided are shown as ends in the last frame:
    the engine fills them without the network. Raises DecoderError for an edit that does not fit its canvas.
    """
    start = 0 if canvas.fixed[canvas.prompt_length :].any() else canvas.prompt_length
    record = _Record(texts, end_ids, start)
    frames = [record.frame(canvas, 0, 0)]
    for number, (edit, num_queries) in enumerate(edits):
        others = alternatives[number] if alternatives else {}
        canvas = record.follow(canvas, edit, number, others)
        frames.append(record.frame(canvas, number + 1, num_queries))
    frames[-1] = _closed(frames[-1])
    hidden = texts.special | end_ids
    given = [id_ for id_ in canvas.tokens[:start].tolist() if id_ not in hidden]
    return Film(tuple(frames), title, texts.text(*given) if given else "")


class _Record:
    """The tokens written so far, by the identity of their positions."""

    def __init__(self, texts: PositionTexts, end_ids: frozenset[int], start: int) -> None:
        self._texts, self._end_ids, self._start = texts, end_ids, start
        self._written: dict[int, tuple[int, float | None]] = {}
        self._likeliest: dict[int, tuple[tuple[str, float], ...]] = {}
        self._earlier: dict[int, tuple[Written, ...]] = {}
        self._shown: Mapping[int, str] = {}
        self._remasked: frozenset[int] = frozenset()

    def follow(
        self,
        before: Canvas,
        edit: Edit,
        number: int,
        alternatives: Mapping[int, Sequence[tuple[int, float]]],
    ) -> Canvas:
        """Record an edit of forward `number` (from 0) and return the canvas after it."""
        after = apply(before, edit, number)
        taken = before.uid[edit.replace].tolist() + before.uid[edit.remask].tolist()
        for uid in taken:
            if uid in self._written and uid in self._shown:
                likeliest = self._likeliest.get(uid, ())
                old = Written(self._shown[uid], *self._written[uid], likeliest)
                self._earlier[uid] = (*self._earlier.get(uid, ()), old)
            self._written.pop(uid, None)
            self._likeliest.pop(uid, None)
        for position, pairs in alternatives.items():
            named = tuple((self._texts.text(id_), share) for id_, share in pairs)
            self._likeliest[int(before.uid[position])] = named
        new = zip(before.uid[edit.commit].tolist(), edit.confidence.tolist(), strict=True)
        confidences: dict[int, float | None] = dict(new)
        confidences |= dict.fromkeys(before.uid[edit.replace].tolist(), None)
        if len(edit.append):
            confidences |= dict.fromkeys(after.uid[-len(edit.append) :].tolist(), None)
        self._remasked = frozenset(before.uid[edit.remask].tolist())
        for uid, confidence in confidences.items():
            if uid not in self._remasked:
                self._written[uid] = number + 1, confidence
        return after

    def frame(self, canvas: Canvas, forward: int, num_queries: int) -> FilmFrame:
        """Return the frame of a canvas after `forward` forwards."""
        cells = tuple(self._cells(canvas, forward))
        self._shown = {cell.uid: cell.text for cell in cells}
        return FilmFrame(forward, cells, num_queries)

    def _cells(self, canvas: Canvas, forward: int) -> Iterator[FilmCell]:
        texts = self._texts.of_positions(canvas, self._start)
        for position, text in enumerate(texts, self._start):
            uid, token = int(canvas.uid[position]), int(canvas.tokens[position])
            if canvas.fixed[position]:
                if token not in self._texts.special and text:
                    yield FilmCell(uid, text, "fixed")
                continue
            earlier = self._earlier.get(uid, ())
            if canvas.open[position]:
                kind: CellKind = "again" if uid in self._remasked else "open"
                yield FilmCell(uid, "", kind, earlier=earlier)
                continue
            number, confidence = self._written.get(uid, (0, None))
            kind = "new" if forward and number == forward else "old"
            written = Written(text, number, confidence, self._likeliest.get(uid, ()))
            yield FilmCell(uid, text, kind, token in self._end_ids, written, earlier)


def _closed(frame: FilmFrame) -> FilmFrame:
    """Return the last frame with the open positions right of an end token shown as ends."""
    end = next((i for i, cell in enumerate(frame.cells) if cell.is_end), len(frame.cells))
    cells = [
        replace(cell, kind="old", is_end=True) if i > end and cell.is_open else cell
        for i, cell in enumerate(frame.cells)
    ]
    return replace(frame, cells=tuple(cells))
