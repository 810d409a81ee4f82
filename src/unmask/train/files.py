"""Sources of rows: files, folders of files, and datasets of the library `datasets`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unmask.data.records import SUFFIXES, DataRow, stream_rows
from unmask.durable import CHUNK_BYTES
from unmask.errors import ConfigError, DependencyError, cut_text

READ = (*SUFFIXES, ".txt", ".ndjson.gz", ".csv.gz", ".txt.gz")


class _Table(Protocol):
    """A dataset of the library `datasets`."""

    _fingerprint: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, object]]: ...


@dataclass(frozen=True)
class RowSource:
    """One `data.path`: its files, or a dataset of the library."""

    path: str
    files: tuple[Path, ...] = ()
    table: _Table | None = None

    def rows(self) -> Iterator[DataRow | ConfigError]:
        """Yield the rows, and the error of each that cannot be read. Raises ConfigError."""
        for file in self.files:
            yield from stream_rows(file)
        for number, values in enumerate(self.table or (), start=1):
            yield DataRow(Path(self.path), f"row {number}", values)

    def digest(self) -> str:
        """Return a hash of the contents, in hexadecimal."""
        hasher = hashlib.sha256()
        for file in self.files:
            hasher.update(file.suffix.encode() + b"\0")
            try:
                with file.open("rb") as opened:
                    while chunk := opened.read(CHUNK_BYTES):
                        hasher.update(chunk)
            except OSError as error:
                raise ConfigError(
                    f"{file} cannot be read: {error.strerror}; give a data file"
                ) from None
        if self.table is not None:
            hasher.update(self.table._fingerprint.encode())
        return hasher.hexdigest()


def find_sources(paths: Iterable[str], split: str) -> list[RowSource]:
    """Return the sources of `data.path`. Raises ConfigError for what is not there or not read."""
    sources = [_find(text, split) for text in paths]
    if not sources:
        raise ConfigError("no data; give a file, e.g. data=my.jsonl")
    return sources


def _find(text: str, split: str) -> RowSource:
    path = Path(text).expanduser()
    if path.is_file():
        return RowSource(text, (_known(path),))
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return RowSource(text, table=_load(text, split, is_local=True))
        files = sorted(
            file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(READ)
        )
        if not files:
            raise ConfigError(f"data={text} has no data files; there are read: {', '.join(READ)}")
        return RowSource(text, tuple(files))
    is_id = text.count("/") == 1 and not text.startswith((".", "~", "/"))
    if is_id and not Path(text.partition("/")[0]).is_dir() and not text.lower().endswith(READ):
        return RowSource(text, table=_load(text, split, is_local=False))
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
    raise ConfigError(
        f"data={cut_text(text, 200)}: no such file or folder{hint or '; give a data file'}"
    )


def _known(path: Path) -> Path:
    if not path.name.lower().endswith(READ):
        raise ConfigError(
            f"data={path}: files called {path.suffix or 'like this'} are not read; convert it to one of "
            f"{', '.join(READ)}"
        )
    return path


def _load(text: str, split: str, *, is_local: bool) -> _Table:
    try:
        import datasets
    except ImportError:
        raise DependencyError(
            f"data={text} needs the library datasets, which is not installed; pip install 'unmask[train]'"
        ) from None
    try:
        loaded = (
            datasets.load_from_disk(text) if is_local else datasets.load_dataset(text, split=split)
        )
    except Exception as error:  # the library raises errors of every kind
        reason = cut_text(" ".join(str(error).split()), 300)
        raise ConfigError(f"data={cut_text(text)} cannot be loaded: {reason}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise ConfigError(f"data.split={split}: {text} has {', '.join(loaded)}; choose one")
        loaded = loaded[split]
    table: _Table = loaded
    return table
