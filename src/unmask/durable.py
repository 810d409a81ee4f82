"""Files that survive a crash, and folders with one writer.

A file or folder appears complete or not at all: it is written under another name, synced to disk (fsync),
renamed, and its folder synced. A folder that one run writes is locked before anything in it changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unmask.errors import ConfigError

LOCK = ".lock"
CHUNK_BYTES = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by `text` in UTF-8. Raises OSError and then leaves the old content."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_writable(path: Path, kind: str) -> None:
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
    raise not_writable(path, reason, kind)


def not_writable(path: Path, reason: object, kind: str) -> ConfigError:
    """Return the error of a file that cannot be written."""
    return ConfigError(f"{kind} {str(path)!r} cannot be written: {reason}; give a path to a file")


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk; nothing on Windows, which cannot."""
    if sys.platform == "win32":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Sync all files below a folder to disk, and the folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def publish_folder(partial: Path, final: Path) -> None:
    """Sync a finished folder and rename it to `final`, which it replaces. Both lie in the same folder."""
    sync_tree(partial)
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old)
    else:
        partial.rename(final)
    sync_folder(final.parent)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill: at the end it becomes `final`, after an error it is deleted."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_folder(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path there, in hexadecimal."""
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        result[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return result


def first_damage(folder: Path, expected: Mapping[str, str]) -> str | None:
    """Return why a folder does not have the files of `expected` (`digests`); None if it has."""
    present = digests(folder)
    for name, digest in expected.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != digest:
            return f"{name} is damaged"
    return None


class FolderLock:
    """The lock of the one process that writes a folder; the system drops it when the process ends.

    Create the folder, and lock it. `run` names the kind of run in the error. Raises ConfigError while
    another process, or another lock of this one, holds the folder. On Windows nothing is locked.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._file: IO[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            return
        import fcntl

        file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read(20).strip()
            file.close()
            raise ConfigError(
                f"{str(folder)!r} is being written by another {run}"
                + (f" (process {owner})" if owner.isdigit() else "")
                + "; wait for it, stop it, or give another output folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Drop the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
