"""Trace files: JSON lines, a header and then one line per forward.

The header holds model, method and the canvas before the first forward (`tokens`, and the undecided
positions `open`); each line holds the changes of one forward, in positions of the canvas before it. A
trace file suffices to replay the decode without the model: `read_film`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TypedDict

from unmask.canvas import Canvas, new_canvas
from unmask.durable import not_writable
from unmask.engine.outputs import Commit, Step, edit_of
from unmask.engine.token_text import TokenTexts, texts_of_positions
from unmask.engine.trace_records import FORMAT, VERSION, Header, extra_fields, opening_fields
from unmask.errors import ConfigError, DecoderError
from unmask.pictures.film import Film, film_of


class TraceWriter:
    """Context manager that writes a trace line by line.

    The file is created (or replaced) at the first step, so a request that is refused leaves none. Raises
    ConfigError when it cannot be written.
    """

    def __init__(self, path: Path, header: Header, pieces: TokenTexts) -> None:
        self._path, self._header, self._pieces = path, header, pieces
        self._file: IO[str] | None = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, canvas: Canvas) -> None:
        """Set the canvas before the first forward, which a decoder may make of the request's."""
        self._header = replace(self._header, **opening_fields(canvas, self._pieces))

    def step(self, number: int, step: Step) -> None:
        """Write the changes of forward `number`."""
        if self._file is None:
            try:
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as error:
                raise not_writable(self._path, error.strerror, "trace file") from None
            first = {"format": self._header.format, "version": self._header.version}
            self._write(self._file, first | asdict(self._header))
        self._write(
            self._file,
            {
                "step": number,
                "committed": [self._commit(item) for item in step.committed],
                "remasked": list(step.remasked),
                "inserted": [list(pair) for pair in step.inserted],
                "replaced": [self._commit(item) for item in step.replaced],
                "deleted": list(step.deleted),
                "appended": list(step.appended),
                "num_queries": step.num_queries,
                "notes": dict(step.notes),
                **extra_fields(step, self._pieces),
            },
        )

    def _commit(self, item: Commit) -> tuple[int, int, float, str]:
        return item.position, item.token, item.confidence, self._pieces.text(item.token)

    def _write(self, file: IO[str], record: dict[str, object]) -> None:
        try:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            raise not_writable(self._path, error.strerror, "trace file") from None


class _StepRecord(TypedDict, total=False):
    """A line of a trace file, the number of the forward aside; a commit ends with its text."""

    committed: list[tuple[int, int, float, str]]
    remasked: list[int]
    inserted: list[tuple[int, int]]
    replaced: list[tuple[int, int, float, str]]
    deleted: list[int]
    appended: list[int]
    num_queries: int
    notes: dict[str, float]
    texts: dict[str, str]
    bytes: dict[str, str]
    alternatives: dict[str, list[tuple[int, float, str]]]


class TraceTexts:
    """The texts of tokens as a trace file has them; the text of another token is its id."""

    def __init__(
        self, texts: Mapping[int, str], parts: Mapping[int, bytes], special: frozenset[int]
    ) -> None:
        self._texts, self._parts, self.special = texts, parts, special

    def text(self, *ids: int) -> str:
        """Return the text of neighboring tokens."""
        if any(id_ in self._parts for id_ in ids):
            return b"".join(self._data(id_) for id_ in ids).decode("utf-8", "replace")
        return "".join(self._texts.get(id_, f"<{id_}>") for id_ in ids)

    def _data(self, id_: int) -> bytes:
        return self._parts.get(id_) or self._texts.get(id_, f"<{id_}>").encode()

    def of_positions(self, canvas: Canvas, start: int) -> list[str]:
        """Return a text for every position from `start` on, as `TokenTexts.of_positions` does."""
        return texts_of_positions(self, canvas, start)


def read_trace(path: Path) -> tuple[Header, list[Step]]:
    """Return header and steps of a trace file. Raises ConfigError for any other file."""
    header, records = _read(path)
    return header, _steps(path, records)


def read_film(path: str | Path) -> Film:
    """Return the film of a trace file, made without the model.

    A file of version 0.1 has no texts of the prompt: its tokens are shown as ids. Raises ConfigError for
    any other file, and for edits that do not fit the canvas.
    """
    source = Path(path).expanduser()
    header, records = _read(source)
    steps = _steps(source, records)
    try:
        texts = {int(id_): text for id_, text in header.texts.items()}
        parts: dict[int, bytes] = {}
        for record in records:
            for _, token, _, text in (*record["committed"], *record["replaced"]):
                texts[token] = text
            for pairs in record.get("alternatives", {}).values():
                texts |= {token: text for token, _, text in pairs}
            texts |= {int(id_): text for id_, text in record.get("texts", {}).items()}
            parts |= {int(id_): bytes.fromhex(v) for id_, v in record.get("bytes", {}).items()}
        blanks = set(header.open)
        canvas = new_canvas(
            header.tokens,
            [position in blanks for position in range(len(header.tokens))],
            len(header.prompt_ids),
            header.mask_id,
        )
        edits = [(edit_of(step), step.num_queries) for step in steps]
        title = " · ".join((header.model, header.method or header.decoder, f"cache {header.cache}"))
        return film_of(
            canvas,
            edits,
            TraceTexts(texts, parts, frozenset(header.special)),
            frozenset(header.ends),
            title=title,
            alternatives=[step.alternatives for step in steps],
        )
    except DecoderError as error:
        raise ConfigError(f"{source}: the edits do not fit the canvas ({error})") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{source}: not a readable trace file ({error})") from None


def _read(path: Path) -> tuple[Header, list[_StepRecord]]:
    try:
        first, *rest = [
            json.loads(line) for line in path.read_text("utf-8").rstrip("\n").split("\n")
        ]
        if first.get("format") != FORMAT or first.get("version") != VERSION:
            raise ConfigError(f"{path}: not a trace of version {VERSION}")
        return Header(**first), rest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a readable trace file ({error})") from None


def _steps(path: Path, records: Sequence[_StepRecord]) -> list[Step]:
    try:
        return [_step(record) for record in records]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a readable trace file ({error})") from None


def _step(line: _StepRecord) -> Step:
    def commits(items: Sequence[tuple[int, int, float, str]]) -> tuple[Commit, ...]:
        return tuple(Commit(position, token, p) for position, token, p, _ in items)

    return Step(
        committed=commits(line["committed"]),
        remasked=tuple(line["remasked"]),
        inserted=tuple((position, count) for position, count in line["inserted"]),
        replaced=commits(line["replaced"]),
        deleted=tuple(line["deleted"]),
        num_queries=line["num_queries"],
        appended=tuple(line["appended"]),
        notes=line["notes"],
        alternatives={
            int(position): tuple((token, float(share)) for token, share, _ in pairs)
            for position, pairs in line.get("alternatives", {}).items()
        },
    )
