"""Trace files: JSON lines, a header and then one line per forward.

The header holds model, method and the canvas before the first forward (`tokens`, and the undecided
positions `open`); each line holds the changes of one forward, in positions of the canvas before it. A
trace file suffices to replay the decode without the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypedDict

from unmask.engine.outputs import Commit, Step
from unmask.engine.token_text import TokenTexts
from unmask.errors import ConfigError

FORMAT = "unmask-trace"
VERSION = 1


@dataclass(frozen=True)
class Header:
    """First line of a trace file.

    `knobs`: all settings in force, defaults included; `method`: the decoder with the knobs that differ
    from their defaults, in the syntax of `--decoder`.
    """

    model: str
    decoder: str
    cache: str
    knobs: dict[str, object]
    seed: int
    prompt_ids: list[int]
    gen_length: int
    mask_id: int
    tokens: list[int]
    open: list[int]
    method: str = ""
    format: str = FORMAT
    version: int = VERSION


def check_writable(path: Path, kind: str = "trace file") -> None:
    """Raise ConfigError when no file can be written at `path`; `kind` names the file. Writes nothing."""
    folder = path.absolute().parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {str(folder)!r}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "no permission"
    else:
        return
    raise _not_writable(path, reason, kind)


def _not_writable(path: Path, reason: object, kind: str = "trace file") -> ConfigError:
    return ConfigError(f"{kind} {str(path)!r} cannot be written: {reason}; give a path to a file")


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

    def step(self, number: int, step: Step) -> None:
        """Write the changes of forward `number`."""
        if self._file is None:
            try:
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as error:
                raise _not_writable(self._path, error.strerror) from None
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
            },
        )

    def _commit(self, item: Commit) -> tuple[int, int, float, str]:
        return item.position, item.token, item.confidence, self._pieces.text(item.token)

    def _write(self, file: IO[str], record: dict[str, object]) -> None:
        try:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            raise _not_writable(self._path, error.strerror) from None


class _StepRecord(TypedDict):
    """A line of a trace file, the number of the forward aside; a commit ends with its text."""

    committed: list[tuple[int, int, float, str]]
    remasked: list[int]
    inserted: list[tuple[int, int]]
    replaced: list[tuple[int, int, float, str]]
    deleted: list[int]
    appended: list[int]
    num_queries: int
    notes: dict[str, float]


def read_trace(path: Path) -> tuple[Header, list[Step]]:
    """Return header and steps of a trace file. Raises ConfigError for any other file."""
    try:
        first, *rest = [
            json.loads(line) for line in path.read_text("utf-8").rstrip("\n").split("\n")
        ]
        if first.get("format") != FORMAT or first.get("version") != VERSION:
            raise ConfigError(f"{path}: not a trace of version {VERSION}")
        return Header(**first), [_step(line) for line in rest]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
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
    )
