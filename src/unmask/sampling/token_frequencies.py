"""How often each token occurs in text as such: the background that a decoder compares itself with.

A file holds counts: `{"num_token": N, "p_baseline_dict": {"token id": count, ...}}`.
Source: arXiv:2508.13021 (PC-Sampler) and the format of its published files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.errors import ConfigError

TOTAL, COUNTS = "num_token", "p_baseline_dict"
MIN_FREQUENCY = 1e-9
"""The least frequency that is told apart from none, here and in PC-Sampler's logarithm."""
_MAX_CACHED = 8
_ID = re.compile(r"0|[1-9][0-9]{0,17}")


def load_background(path: str | Path, vocab_size: int) -> NDArray[np.float64]:
    """Relative frequencies `(V,)` of all token ids, read-only: count / N, and 1 / N where unseen.

    The unseen come on top, so the sum may exceed 1 a little. A file is read again only when it has
    changed. Raises ConfigError for a file that is missing, broken or of another kind, for ids outside
    the vocabulary, and for counts that are none.
    """
    where = Path(path).expanduser()
    try:
        stat = where.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"background file {str(path)!r} cannot be read: {reason}; `unmask frequencies` writes one"
        ) from None
    return _load(str(where.absolute()), stat.st_mtime_ns, stat.st_size, vocab_size)


@lru_cache(maxsize=_MAX_CACHED)
def _load(path: str, mtime_ns: int, size_bytes: int, vocab_size: int) -> NDArray[np.float64]:
    """The frequencies of one state of a file; time and size only tell that state from others."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"background file {path!r} cannot be read ({error}); `unmask frequencies` writes one"
        ) from None
    total, counts = _fields(path, found)
    frequencies = np.full(vocab_size, 1 / total)
    for key, count in counts.items():
        if not _ID.fullmatch(key):
            raise ConfigError(
                f"background file {path!r}: {key!r} is no token id; ids are 0, 1, ..."
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


def _fields(path: str, found: Any) -> tuple[int, dict[str, Any]]:
    """N and the counts, still unchecked. Raises ConfigError."""
    wanted = f'{{"{TOTAL}": N, "{COUNTS}": {{"token id": count}}}}'
    if not isinstance(found, dict) or not {TOTAL, COUNTS} <= found.keys():
        has = (
            f"keys {sorted(found)[:5]}" if isinstance(found, dict) else f"a {type(found).__name__}"
        )
        raise ConfigError(
            f"background file {path!r} holds {has}, not token counts; it must hold {wanted}"
        )
    total, counts = found[TOTAL], found[COUNTS]
    if not _is_whole(total) or total <= 0:
        raise ConfigError(
            f"background file {path!r}: {TOTAL}={total!r} must be a whole number above 0, the sum of "
            "the counts"
        )
    if not isinstance(counts, dict):
        raise ConfigError(f"background file {path!r}: {COUNTS} must be an object; use {wanted}")
    return total, counts


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def save_background(path: str | Path, counts: Mapping[int, int]) -> None:
    """Write counts in the published format, in the order of the ids; N is their sum.

    Replaces a file at once or not at all. Raises ConfigError when nothing was counted, for a negative
    id or count, and for a path that cannot be written.
    """
    total = sum(counts.values())
    bad = next((item for item in counts.items() if min(item) < 0), None)
    if bad is not None:
        raise ConfigError(f"token id {bad[0]} with count {bad[1]}: neither can be negative")
    if total == 0:
        raise ConfigError("no tokens were counted; give some text")
    where = Path(path).expanduser()
    part = where.with_name(where.name + f".{os.getpid()}.part")
    listed = {str(int(id_)): int(count) for id_, count in sorted(counts.items())}
    try:
        part.write_text(json.dumps({TOTAL: int(total), COUNTS: listed}) + "\n", encoding="utf-8")
        part.replace(where)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(
            f"background file {str(path)!r} cannot be written: {error.strerror or error}; give a path "
            "to a file in a folder that exists"
        ) from None


def counts_of(frequencies: NDArray[np.float64]) -> dict[int, int]:
    """Frequencies as counts out of about 1 / MIN_FREQUENCY tokens; what would be one token is unseen."""
    counts = np.rint(frequencies / MIN_FREQUENCY).astype(np.int64)
    return {int(id_): int(counts[id_]) for id_ in np.flatnonzero(counts > 1)}
