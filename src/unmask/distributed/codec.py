"""Messages between ranks and their serialization: JSON and raw arrays in one byte buffer, never pickles.

A message can contain None, bools, numbers, strings, lists, int64 and bool arrays, and the dataclasses in
`MESSAGE_TYPES`; nothing else can be built from received bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.attention.layered import FeatureRowMeta
from unmask.attention.packed import RowMeta
from unmask.caches.base import Layers
from unmask.canvas import Bools, Ints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Bytes = NDArray[np.uint8]
StoreKind = Literal["dense", "features", "paged"]
Mutation = Literal["reserve", "move_row", "move_positions", "grow", "copy"]


class MessageError(ValueError):
    """A value that cannot be serialized, or bytes that are not a message."""


@dataclass(frozen=True, slots=True)
class AttentionMessage:
    """The arguments of an attention backend; stores are given by their number.

    `rows` carry no page table: `pages[i]` are the pages of row i, None if it is not paged.
    """

    rows: Sequence[RowMeta] | Sequence[FeatureRowMeta]
    store: int | None
    paged_store: int | None
    pages: Sequence[Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class ForwardMessage:
    """The inputs of one forward pass."""

    ids: Ints
    position_ids: Ints
    visible: Bools | None
    attention: AttentionMessage | None


@dataclass(frozen=True, slots=True)
class CreateStore:
    """A new store: `sizes` are (rows, positions) of a dense store, (pages,) of a paged one."""

    store: int
    kind: StoreKind
    sizes: Sequence[int]


@dataclass(frozen=True, slots=True)
class MutateStore:
    """A call of a store's method `mutation`."""

    store: int
    mutation: Mutation
    arguments: Sequence[int | Ints]


@dataclass(frozen=True, slots=True)
class EndMessage:
    """The end of the worker loop."""


Message = ForwardMessage | CreateStore | MutateStore | EndMessage


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message, and the numbers of stores that were released before it."""

    message: Message
    released: Sequence[int]


MESSAGE_TYPES: dict[str, type[DataclassInstance]] = {
    kind.__name__: kind
    for kind in (
        *(Envelope, ForwardMessage, CreateStore, MutateStore, EndMessage, AttentionMessage),
        *(RowMeta, FeatureRowMeta, Layers),
    )
}
DTYPES = ("int64", "bool")


def pack(message: object) -> Bytes:
    """Return a message as bytes: the length of its JSON as int64, the JSON, then the arrays in order.

    Raises MessageError for a value that is not serializable.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_encode(message, arrays)).encode()
    head = np.array([len(text)], dtype=np.int64)
    parts = [head, np.frombuffer(text, dtype=np.uint8), *arrays]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def unpack(data: Bytes) -> object:
    """Return the message of `pack`; tuples become lists. Raises MessageError for malformed bytes."""
    try:
        start = 8 + int(data[:8].view(np.int64)[0])
        return _decode(json.loads(data[8:start].tobytes()), data, start)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise MessageError(f"malformed message of {len(data)} bytes: {error!r}") from error


def _encode(value: object, arrays: list[np.ndarray]) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, np.ndarray):
        dtype = str(value.dtype)
        if dtype not in DTYPES:
            raise MessageError(
                f"an array of {dtype} is not serializable; use {' or '.join(DTYPES)}"
            )
        start = sum(array.nbytes for array in arrays)
        arrays.append(value)
        return {"array": dtype, "shape": list(value.shape), "start": start}
    name = type(value).__name__
    kind = MESSAGE_TYPES.get(name)
    if kind is None or type(value) is not kind:
        raise MessageError(f"{name} is not serializable; allowed: {sorted(MESSAGE_TYPES)}")
    values = {item.name: _encode(getattr(value, item.name), arrays) for item in fields(kind)}
    return {"type": name, "fields": values}


def _decode(tree: object, data: Bytes, start: int) -> object:
    if isinstance(tree, list):
        return [_decode(item, data, start) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "type" in tree:
        values = {name: _decode(item, data, start) for name, item in tree["fields"].items()}
        return MESSAGE_TYPES[tree["type"]](**values)
    if tree["array"] not in DTYPES:
        raise MessageError(f"an array of {tree['array']!r}")
    dtype = np.dtype(tree["array"])
    count = int(np.prod(tree["shape"], dtype=np.int64))
    first = start + tree["start"]
    part = data[first : first + count * dtype.itemsize]
    return part.copy().view(dtype).reshape(tree["shape"])
