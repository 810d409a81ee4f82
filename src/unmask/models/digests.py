"""Digests of a checkpoint's files, by which a result says exactly what was run."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from unmask.errors import ModelError

CHUNK_BYTES = 1 << 22
PARTS = {
    "weights": ("*.safetensors",),
    "config": ("config.json",),
    "tokenizer": (
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.jinja",
        "tokenizer*.py",
    ),
}
"""Patterns of the files of each part of a checkpoint folder."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_SHA256 = re.compile("[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Raises OSError.

    A file of the hub's cache that is called by its digest is not read; others are once per process.
    """
    real = path.resolve(strict=True)
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    found = real.stat()
    return _read(str(real), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: str, size: int, stamp: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def checkpoint_digests(folder: Path) -> dict[str, str | None]:
    """Return a digest of each of `PARTS` and the `revision` of a folder of the hub's cache, else None.

    The digest of a part is the SHA-256 of its lines "NAME DIGEST", sorted by name; None without files.
    Reads all files that are not in the hub's cache. Raises ModelError.
    """
    found = {part: _part_digest(folder, patterns) for part, patterns in PARTS.items()}
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    found["revision"] = folder.name if is_snapshot else None
    return found


def weights_digest(folder: Path | None) -> str | None:
    """Return the digest of a checkpoint's weights, as in `checkpoint_digests`; None without a folder."""
    return None if folder is None else checkpoint_digests(folder)["weights"]


def adapter_digest(folder: Path) -> str | None:
    """Return the digest of an adapter's weights and configuration, as that of a part. Raises ModelError."""
    return _part_digest(folder, ADAPTER)


def _part_digest(folder: Path, patterns: Sequence[str]) -> str | None:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    try:
        lines = [f"{path.name} {file_digest(path)}\n" for path in paths if path.is_file()]
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None
