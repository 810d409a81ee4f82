"""The trace file: JSON lines, a header and then one line a forward.

The header says what was decoded and how, with the canvas before the first forward (`tokens`, and the
undecided positions `open`); each line is what one forward changed, in positions of the canvas it saw. It is
enough to replay the decode without the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from unmask.engine.outputs import Commit, Step
from unmask.engine.token_text import TokenTexts
from unmask.errors import ConfigError

FORMAT = "unmask-trace"
VERSION = 1


@dataclass(frozen=True)
class Header:
    """First line of a trace file.

    `knobs` are all settings in force, the defaults too; `method` is the decoder with those that are not
    at their defaults, as `--decoder` takes it.
    """

    model: str
    decoder: str
    cache: str
    knobs: dict[str, Any]
    seed: int
    prompt_ids: list[int]
    gen_length: int
    mask_id: int
    tokens: list[int]
    open: list[int]
    method: str = ""
    format: str = FORMAT
    version: int = VERSION


def check_writable(path: Path, what: str = "trace file") -> None:
    """Raises ConfigError when a file cannot be written there (`what` it is to be); writes nothing."""
    folder = path.absolute().parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {str(folder)!r}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        reason = "no permission"
    else:
        return
    raise _refusal(path, reason, what)


def _refusal(path: Path, reason: object, what: str = "trace file") -> ConfigError:
    return ConfigError(f"{what} {str(path)!r} cannot be written: {reason}; give a path to a file")


class TraceWriter:
    """Writes a trace line by line.

    The file appears (or is replaced) with the first step: a decode that is refused leaves none. Raises
    ConfigError when it cannot be written.
    """

    def __init__(self, path: Path, header: Header, pieces: TokenTexts) -> None:
        self._path, self._header, self._pieces = path, header, pieces
        self._file: Any = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        try:
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise _refusal(self._path, error.strerror) from None
        marks = {"format": self._header.format, "version": self._header.version}
        self._line(marks | asdict(self._header))

    def step(self, number: int, step: Step) -> None:
        """Write what forward `number` changed."""
        if self._file is None:
            self._begin()
        self._line(
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
            }
        )

    def _commit(self, item: Commit) -> list[Any]:
        return [item.position, item.token, item.confidence, self._pieces.text(item.token)]

    def _line(self, value: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _refusal(self._path, error.strerror) from None


def read_trace(path: Path) -> tuple[Header, list[Step]]:
    """A trace file's header and steps. Raises ConfigError for anything else."""
    try:
        first, *rest = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        if first.get("format") != FORMAT or first.get("version") != VERSION:
            raise ConfigError(f"{path}: not a trace of version {VERSION}")
        return Header(**first), [_step(line) for line in rest]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not a readable trace file ({error})") from None


def _step(line: dict[str, Any]) -> Step:
    def commits(items: Sequence[Sequence[Any]]) -> tuple[Commit, ...]:
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
