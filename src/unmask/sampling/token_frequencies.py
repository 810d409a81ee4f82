"""Background frequencies of tokens: how often each occurs in plain text, as a baseline for confidences.

A file has counts: `{"num_token": N, "p_baseline_dict": {"token id": count, ...}}`.
Source: arXiv:2508.13021 (PC-Sampler) and the format of its published files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from unmask.errors import ConfigError

TOTAL, COUNTS = "num_token", "p_baseline_dict"
MIN_FREQUENCY = 1e-9
"""The lowest frequency that is distinguished from 0, here and in the logarithm of PC-Sampler."""
_MAX_CACHED = 8
_ID = re.compile(r"0|[1-9][0-9]{0,17}")


def load_background(path: str | Path, vocab_size: int) -> NDArray[np.float64]:
    """Return relative frequencies `(V,)` of all token ids, read-only: count / N, and 1 / N if unseen.

    The sum may slightly exceed 1, since unseen tokens are not part of N. The result is cached until the
    file changes. Raises ConfigError for a file that is missing, malformed or of another kind, for ids
    outside the vocabulary and for invalid counts.
    """
    file = Path(path).expanduser()
    try:
        stat = file.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"background file {str(path)!r} cannot be read: {reason}; `unmask frequencies` writes one"
        ) from None
    return _load(str(file.absolute()), stat.st_mtime_ns, stat.st_size, vocab_size)


@lru_cache(maxsize=_MAX_CACHED)
def _load(path: str, mtime_ns: int, size_bytes: int, vocab_size: int) -> NDArray[np.float64]:
    """Load a file; its time and size are part of the cache key."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"background file {path!r} cannot be read ({error}); `unmask frequencies` writes one"
        ) from None
    total, counts = _fields(path, content)
    frequencies = np.full(vocab_size, 1 / total)
    for key, count in counts.items():
        if not _ID.fullmatch(key):
            raise ConfigError(
                f"background file {path!r}: {key!r} is not a token id; ids are 0, 1, ..."
            )
        id_ = int(key)
        if id_ >= vocab_size:
            raise ConfigError(
                f"background file {path!r}: token id {id_} is outside the model's vocabulary, "
                f"0..{vocab_size - 1}; count with this model's tokenizer"
            )
        if not _is_whole(count) or not 0 <= count <= total:
            raise ConfigError(
                f"background file {path!r}: token id {id_} has count {count!r}; counts are whole "
                f"numbers from 0 to {TOTAL} ({total})"
            )
        if count > 0:
            frequencies[id_] = count / total
    frequencies.setflags(write=False)
    return frequencies


def _fields(path: str, content: object) -> tuple[int, dict[str, object]]:
    """Return N and the counts, still unchecked. Raises ConfigError."""
    expected = f'{{"{TOTAL}": N, "{COUNTS}": {{"token id": count}}}}'
    if not isinstance(content, dict) or not {TOTAL, COUNTS} <= content.keys():
        kind = type(content).__name__
        actual = f"keys {sorted(content)[:5]}" if isinstance(content, dict) else f"a {kind}"
        raise ConfigError(
            f"background file {path!r} has {actual}, not token counts; it must be {expected}"
        )
    total, counts = content[TOTAL], content[COUNTS]
    if not _is_whole(total) or total <= 0:
        raise ConfigError(
            f"background file {path!r}: {TOTAL}={total!r} must be a whole number above 0, the sum of "
            "the counts"
        )
    if not isinstance(counts, dict):
        raise ConfigError(f"background file {path!r}: {COUNTS} must be an object; use {expected}")
    return total, counts


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def save_background(path: str | Path, counts: Mapping[int, int]) -> None:
    """Write counts in the published format, in the order of the ids; N is their sum.

    The file is replaced atomically. Raises ConfigError when there are no counts, for a negative id or
    count, and for a path that cannot be written.
    """
    total = sum(counts.values())
    negative = next((item for item in counts.items() if min(item) < 0), None)
    if negative is not None:
        raise ConfigError(
            f"token id {negative[0]} with count {negative[1]}: neither may be negative; count again"
        )
    if total == 0:
        raise ConfigError("no tokens were counted; give a text that is not empty")
    file = Path(path).expanduser()
    part = file.with_name(file.name + f".{os.getpid()}.part")
    by_id = {str(int(id_)): int(count) for id_, count in sorted(counts.items())}
    try:
        part.write_text(json.dumps({TOTAL: int(total), COUNTS: by_id}) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(
            f"background file {str(path)!r} cannot be written: {error.strerror or error}; give a path "
            "to a file in a folder that exists"
        ) from None


def counts_of(frequencies: NDArray[np.float64]) -> dict[int, int]:
    """Return counts per 1 / MIN_FREQUENCY tokens; a frequency that rounds to one token counts as unseen."""
    counts = np.rint(frequencies / MIN_FREQUENCY).astype(np.int64)
    return {int(id_): int(counts[id_]) for id_ in np.flatnonzero(counts > 1)}
