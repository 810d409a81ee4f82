"""The one reader of data files: rows of JSON lines, JSON, CSV and Parquet, with the place of each.

A row is an object. What is not read as text of the right kind is a ConfigError with file and line; a field
that nobody reads may hold anything.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import ConfigError, DependencyError

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".parquet", ".csv")
"""Forms of a file of rows, in the order in which they are preferred."""
MAX_SHOWN = 60
"""Maximum number of characters of a value in an error."""
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs"
_SPACE = re.compile(r"[ \t\r\n]*")


class _Ambiguous:
    """Marker in place of a field that an object has twice, with different values."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """A row of a data file: its fields, and its place for errors, such as "line 3"."""

    path: Path
    place: str
    values: Mapping[str, object]

    def error(self, problem: str) -> ConfigError:
        """Return the error for this row."""
        return _bad(self.path, self.place, problem)

    def field(self, *names: str) -> tuple[str, object]:
        """Return name and value of the first field that is there and not null. Raises ConfigError."""
        for name in names:
            value = self.values.get(name)
            self.check_single(name)
            if value is not None:
                return name, value
        listed = " or ".join(map(repr, names))
        if any(name in self.values for name in names):
            raise self.error(f": {listed} is null; complete or remove the row")
        there = ", ".join(repr(name) for name in list(self.values)[:8])
        raise self.error(f" has no {listed}, but {_short(there) or 'nothing'}; add it")

    def check_single(self, name: str) -> None:
        """Raise ConfigError for a field that the row has twice, with different values."""
        if isinstance(self.values.get(name), _Ambiguous):
            raise self.error(f" has the field {name!r} twice; leave one")

    def has(self, *names: str) -> bool:
        """Return True if one of the fields is there and not null."""
        return any(self.values.get(name) is not None for name in names)

    def text(self, *names: str, may_be_empty: bool = False) -> str:
        """Return a field that is text, and not white space alone. Raises ConfigError."""
        return self._text(*self.field(*names), may_be_empty)

    def texts(self, *names: str, count: int | None = None) -> list[str]:
        """Return a field that is a list of texts, `count` of them or at least one. Raises ConfigError."""
        name, value = self.field(*names)
        if not isinstance(value, list) or len(value) != (count or len(value) or 1):
            expected = "a list of texts" if count is None else f"a list of {count} texts"
            raise self.error(f": {name}={shown(value)} must be {expected}")
        return [self._text(name, item, False) for item in value]

    def whole(self, *names: str) -> int:
        """Return a field that is a whole number, as a number or in digits. Raises ConfigError."""
        name, value = self.field(*names)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f": {name}={shown(value)} must be a whole number")
        return value

    def _text(self, name: str, value: object, may_be_empty: bool) -> str:
        if not isinstance(value, str):
            raise self.error(f": {name}={shown(value)} must be text, in quotes")
        if not may_be_empty and not value.strip():
            raise self.error(f": {name} is empty; complete or remove the row")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(f": {name} has half a character (a lone surrogate); correct it")
        return value


def _bad(path: Path, place: str, problem: str) -> ConfigError:
    return ConfigError(f"{path}, {place}{problem}")


def shown(value: object) -> str:
    """Return a value for an error, shortened."""
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"({type(value).__name__} of {len(value)})"
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def read_rows(path: Path) -> list[DataRow]:
    """Read the rows of a file by the end of its name, one of `SUFFIXES`, else as JSON.

    A `.json` file holds an array of objects, or objects one after the other. The first line of a `.csv`
    file names the fields. Raises ConfigError for a file without rows, and DependencyError for Parquet
    without pyarrow.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".parquet":
        rows = _parquet(path)
    elif kind == ".csv":
        rows = _table(path)
    elif kind in JSON_LINES:
        rows = list(parse_lines(path, read_text(path).split("\n")))
    else:
        rows = list(_objects(path, read_text(path)))
    if not rows:
        raise ConfigError(f"{path} has no rows; give a file with at least one")
    return rows


def read_text(path: Path) -> str:
    """Read a UTF-8 text, compressed by gzip if it is called `.gz`, without a byte-order mark.

    Raises ConfigError with the line that is not UTF-8.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    _refuse_binary(path, data)
    data = data.removeprefix(_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, data[error.start]) from None


def parse_lines(path: Path, lines: Iterable[str]) -> Iterator[DataRow]:
    """Parse one object per line; empty lines are passed over. Raises ConfigError with the line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_line(path, number, line)


def parse_line(path: Path, number: int, line: str) -> DataRow:
    """Parse the object on a line. Raises ConfigError."""
    place = f"line {number}"
    value, end = _decode(path, place, line, _skip_space(line, 0))
    if _skip_space(line, end) < len(line):
        problem = "there is more after its value; put one object on each line"
        raise _bad(path, place, f" is not JSON: {problem}")
    return _row(path, place, value, "name a file that is one array .json")


def stream_rows(path: Path) -> Iterator[DataRow | ConfigError]:
    """Yield the rows of a file one by one, and the error of each that cannot be read.

    A file of JSON lines is not held in memory; one of `.txt` is a single row with the field `text`. Errors
    of a whole file (not UTF-8 text from its beginning, no Parquet, a JSON array that is cut off, no rows)
    are raised.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    count = 0
    if kind == ".txt":
        text = read_text(path)
        rows: Iterable[DataRow | ConfigError] = (
            [DataRow(path, "line 1", {"text": text})] if text.strip() else []
        )
    elif kind in JSON_LINES:
        rows = _stream_lines(path)
    elif kind == ".csv":
        rows = _stream_table(path)
    else:
        rows = read_rows(path)
    for row in rows:
        count += 1
        yield row
    if not count:
        raise ConfigError(f"{path} has no rows; give a file with at least one")


def _stream_lines(path: Path) -> Iterator[DataRow | ConfigError]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, data in enumerate(file, start=1):
                if number == 1:
                    _refuse_binary(path, data)
                    data = data.removeprefix(_BOM)
                try:
                    line = data.decode("utf-8")
                    if line.strip():
                        yield parse_line(path, number, line)
                except UnicodeDecodeError as error:
                    yield _not_utf8(path, number, data[error.start])
                except ConfigError as error:
                    yield error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _stream_table(path: Path) -> Iterator[DataRow | ConfigError]:
    (_, names), *rows = read_cells(path) or [(1, [])]
    for line, cells in rows:
        try:
            yield table_row(path, line, names, cells)
        except ConfigError as error:
            yield error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"{path} cannot be read: {reason}; give a data file")


def _refuse_binary(path: Path, data: bytes) -> None:
    """Raise ConfigError for the beginning of a file that is no UTF-8 text."""
    if data.startswith(_LFS):
        raise ConfigError(
            f"{path} is a Git LFS pointer, not the data; fetch it with `git lfs pull`"
        )
    if data.startswith(_WIDE) or b"\0" in data[:200]:
        raise _bad(path, "line 1", " is not UTF-8 but UTF-16 or binary; convert it to UTF-8")


def _not_utf8(path: Path, line: int, byte: int) -> ConfigError:
    advice = "convert the file, e.g. iconv -f latin1 -t utf-8"
    return _bad(path, f"line {line}", f" is not UTF-8 (byte 0x{byte:02x}); {advice}")


def _objects(path: Path, text: str) -> Iterator[DataRow]:
    """Parse an array of objects, or objects with nothing but white space between them."""
    at = _skip_space(text, 0)
    is_array = text.startswith("[", at)
    at = _skip_space(text, at + 1) if is_array else at
    line, counted, is_first = 1, 0, True
    while at < len(text) and not (is_array and is_first and text[at] == "]"):
        line, counted, is_first = line + text.count("\n", counted, at), at, False
        place = f"line {line}"
        value, at = _decode(path, place, text, at)
        yield _row(path, place, value, "give objects")
        at = _skip_space(text, at)
        if is_array and not text.startswith(",", at):
            break
        at = _skip_space(text, at + 1) if is_array else at
    if not is_array:
        return
    is_closed = text.startswith("]", at)
    at = _skip_space(text, at + 1) if is_closed else at
    if not is_closed or at < len(text):
        line += text.count("\n", counted, at)
        problem = "there is more after the array" if is_closed else "expected ',' or ']'"
        raise _bad(path, f"line {line}", f" is not JSON: {problem}")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None, "the pattern may match nothing"
    return match.end()


def _decode(path: Path, place: str, text: str, at: int) -> tuple[object, int]:
    """Decode the JSON value at an index; return it and the index after it."""
    try:
        value: object
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        reason, below = error.msg, text.count("\n", at, error.pos)
        where = f" {below} lines below" if below else ""
        raise _bad(path, place, f" is not JSON: {reason}{where}") from None
    except RecursionError:
        raise _bad(path, place, " is nested too deeply; remove it") from None
    except ValueError as error:  # a number of thousands of digits
        raise _bad(path, place, f" is not JSON: {error}") from None
    return value, end


def _without_conflicts(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object's fields; one that has two values is marked."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for name, value in pairs:
            other = values[name]
            if type(value) is not type(other) or value != other:
                values[name] = _Ambiguous()
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_without_conflicts)


def _row(path: Path, place: str, value: object, advice: str) -> DataRow:
    if isinstance(value, dict):
        return DataRow(path, place, value)
    kinds = {list: "an array", str: "a text", bool: "a truth value", type(None): "null"}
    kind = kinds.get(type(value), "a number")
    raise _bad(path, place, f" is {kind}, not an object with the fields of a row; {advice}")


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Read the cells of a CSV file, with the line on which each row begins. Raises ConfigError."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise _bad(path, f"line {line}", f" is not CSV: {error}") from None
    return rows


def _table(path: Path) -> list[DataRow]:
    (_, names), *rows = read_cells(path) or [(1, [])]
    return [table_row(path, line, names, cells) for line, cells in rows]


def table_row(path: Path, line: int, names: list[str], cells: list[str]) -> DataRow:
    """Return a row of a CSV file with a header. Raises ConfigError for another number of cells."""
    if len(cells) != len(names):
        problem = f" has {len(cells)} cells, but the header has {len(names)}"
        raise _bad(path, f"line {line}", problem)
    return DataRow(path, f"line {line}", dict(zip(names, cells, strict=True)))


def _parquet(path: Path) -> list[DataRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DependencyError(
            f"{path} needs pyarrow, which is not installed; pip install 'unmask[eval]'"
        ) from None
    try:
        values = parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = _short(str(error).splitlines()[0])
        raise ConfigError(f"{path} is not a Parquet file: {reason}; download it again") from None
    return [DataRow(path, f"row {number}", each) for number, each in enumerate(values, start=1)]


def find_files(folder: Path, stem: str) -> list[Path]:
    """Return the files of a split: `stem` with one of `SUFFIXES`, or the hub's Parquet shards.

    The shards `STEM-00000-of-00001.parquet` may be in a subfolder: of several, main, default, full or all.
    Empty if there is nothing. Raises ConfigError for several subfolders, and for missing shards.
    """
    for suffix in SUFFIXES:
        if (folder / (stem + suffix)).is_file():
            return [folder / (stem + suffix)]
    found: dict[Path, list[Path]] = {}
    for pattern in (f"{stem}-*-of-*.parquet", f"*/{stem}-*-of-*.parquet"):
        for path in sorted(folder.glob(pattern)):
            found.setdefault(path.parent, []).append(path)
    if not found:
        return []
    preferred = [folder, *(folder / name for name in ("main", "default", "full", "all"))]
    parent = next((each for each in preferred if each in found), min(found))
    if len(found) > 1 and parent not in preferred:
        names = ", ".join(sorted(each.name for each in found)[:8])
        raise ConfigError(
            f"{folder} has {stem} files in several subfolders ({names}); keep one of them"
        )
    shards = found[parent]
    total = shards[0].stem.rpartition("-of-")[2]
    if total.isdigit() and len(shards) != int(total):
        raise ConfigError(f"{parent} has {len(shards)} of {int(total)} {stem} shards; fetch all")
    return shards
