"""What ranks tell each other: JSON and whole numbers, in one buffer of bytes. Never pickles.

What can be said is what is listed here, so a message can make nothing but these values: None, bools,
numbers, texts, lists, integer and bool arrays, and the dataclasses of `TOLD`.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np

from unmask.attention.layered import FeatureRowMeta
from unmask.attention.packed import RowMeta
from unmask.caches.base import Layers

TOLD: dict[str, type[Any]] = {kind.__name__: kind for kind in (RowMeta, Layers, FeatureRowMeta)}
DTYPES = ("int64", "bool")
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def pack(message: Any) -> Bytes:
    """The bytes of a message: the length of its JSON as an int64, the JSON, the arrays in their order."""
    arrays: list[np.ndarray] = []
    text = json.dumps(_tree(message, arrays)).encode()
    head = np.array([len(text)], dtype=np.int64)
    parts = [head, np.frombuffer(text, dtype=np.uint8), *arrays]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def unpack(data: Bytes) -> Any:
    """The message again; tuples have become lists."""
    start = 8 + int(data[:8].view(np.int64)[0])
    return _value(json.loads(data[8:start].tobytes()), data, start)


def _tree(value: Any, arrays: list[np.ndarray]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_tree(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        kind = str(value.dtype)
        assert kind in DTYPES, f"arrays of {kind} are not told"
        start = sum(array.nbytes for array in arrays)
        arrays.append(value)
        return {"array": kind, "shape": list(value.shape), "start": start}
    assert type(value) in TOLD.values(), f"{type(value)} is not told"
    told = {item.name: _tree(getattr(value, item.name), arrays) for item in fields(value)}
    return {"is": type(value).__name__, "with": told}


def _value(tree: Any, data: Bytes, start: int) -> Any:
    if isinstance(tree, list):
        return [_value(item, data, start) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "is" in tree:
        told = {name: _value(item, data, start) for name, item in tree["with"].items()}
        return TOLD[tree["is"]](**told)
    kind = np.dtype(tree["array"])
    count = int(np.prod(tree["shape"], dtype=np.int64))
    first = start + tree["start"]
    part = data[first : first + count * kind.itemsize]
    return part.copy().view(kind).reshape(tree["shape"])
