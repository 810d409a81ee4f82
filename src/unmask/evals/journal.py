"""Answers on disk as they come: nothing finished is lost, nothing is answered twice.

Each process appends to a file of its own (`samples.jsonl`, `samples.1.jsonl`, ...), one line an answer,
on the disk (fsync) before the next one begins. Reading takes all of them, whatever the number of
processes was. A last line that a killed process left half written is cut off; the answer is decoded anew.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from unmask.errors import ConfigError
from unmask.evals.generation import Answer
from unmask.evals.token_counts import Counted

PATTERN = "samples*.jsonl"


def journal_path(folder: Path, rank: int) -> Path:
    """The file of one process."""
    return folder / ("samples.jsonl" if rank == 0 else f"samples.{rank}.jsonl")


class StoredAnswer:
    """An answer with who wrote it: `session` counts the starts of the run, `rank` is the process."""

    def __init__(self, answer: Answer, session: int, rank: int) -> None:
        self.answer, self.session, self.rank = answer, session, rank


def read_all(folder: Path) -> dict[str, StoredAnswer]:
    """All stored answers by key. Raises ConfigError for a line that is no answer."""
    found: dict[str, StoredAnswer] = {}
    for path in sorted(folder.glob(PATTERN)):
        # What follows the last line end is half written, even where it could be read.
        lines = path.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                stored = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"{str(path)!r} line {number} is no answer of ours ({error}); remove the line, or "
                    f"begin anew with resume=False"
                ) from None
            found.setdefault(stored.answer.key, stored)
    return found


def _parse(record: dict[str, Any]) -> StoredAnswer:
    names = {field.name for field in fields(Answer)}
    counted = Counted(**record["counted"])
    rest = {k: v for k, v in record.items() if k in names and k != "counted"}
    return StoredAnswer(Answer(counted=counted, **rest), record["session"], record["rank"])


class Journal:
    """A context that appends answers. Raises ConfigError when another process writes to the same run."""

    def __init__(self, folder: Path, rank: int, session: int) -> None:
        self.path, self.rank, self.session = journal_path(folder, rank), rank, session

    def __enter__(self) -> Journal:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._file)
        except OSError:
            os.close(self._file)
            raise ConfigError(
                f"{str(self.path)!r} is being written by another run; wait for it, or give another output"
            ) from None
        _cut_half_line(self._file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def append(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns."""
        record = asdict(answer) | {"session": self.session, "rank": self.rank}
        record = {key: value for key, value in record.items() if value is not None}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = line.encode()
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)


def _lock(file: int) -> None:
    """Keep others out until the file is closed. Raises OSError. Windows has no such lock."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _cut_half_line(file: int) -> None:
    """Drop what follows the last line end, and go to the end."""
    size = os.lseek(file, 0, os.SEEK_END)
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end != size:
        os.ftruncate(file, end)
    os.lseek(file, 0, os.SEEK_END)
