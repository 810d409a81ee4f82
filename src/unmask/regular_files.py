"""Files that somebody else made: opened only if they are regular, without blocking, read up to a limit."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def special_kind(mode: int) -> str | None:
    """Return the kind of a file by its mode, such as "a pipe"; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, for a pipe, socket, device or folder too, at once."""
    _check(path, path.stat())  # opening a device may already have an effect
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    try:
        _check(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raises OSError, for more than `max_bytes` too."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(max_bytes + 1) if size <= max_bytes else b""
    size = max(size, len(data))
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes; at most {max_bytes} are read", str(path))
    return data


def _check(path: Path, status: os.stat_result) -> None:
    kind = special_kind(status.st_mode)
    if kind is not None:
        raise OSError(errno.EINVAL, f"{kind}, not a file", str(path))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
