"""JSON from files that somebody else wrote, bounded before it is built."""

from __future__ import annotations

import json
from itertools import chain

MAX_DEPTH = 32
MAX_VALUES = 500_000


class JsonLimitError(ValueError):
    """JSON that is nested too deep, has too many values, or a key twice with different values."""


def parse_json(data: bytes, max_values: int = MAX_VALUES, max_depth: int = MAX_DEPTH) -> object:
    """Parse JSON in UTF-8, with or without a byte order mark.

    Numbers may be NaN or infinite, as Python writes them. Raises ValueError, which includes a
    JsonLimitError: `max_values` is compared with the separators of the text before anything is built.
    """
    num_values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if num_values > max_values:
        raise JsonLimitError(f"about {num_values} values; at most {max_values} are read")
    try:
        value: object = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise _too_deep(max_depth) from None
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > max_depth:
            raise _too_deep(max_depth)
        level = list(chain.from_iterable(map(_items, level)))
    return value


def _too_deep(max_depth: int) -> JsonLimitError:
    return JsonLimitError(f"nested more than {max_depth} deep")


def _items(container: dict[str, object] | list[object]) -> list[object]:
    return list(container.values()) if isinstance(container, dict) else container


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object; a key that it has twice must have the same value both times."""
    result = dict(pairs)
    if len(result) < len(pairs):
        for key, value in pairs:
            if value != result[key]:
                raise JsonLimitError(f"the key {key[:60]!r} twice, with different values")
    return result
