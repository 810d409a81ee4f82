"""Values and messages between the process of an answer and that of its tests.

A message is one line of JSON. Values of the standard types are copied; any other object stays in its
process and travels as a handle, a number. Nothing that is received is executed. Messages are bounded.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction

MAX_MESSAGE_BYTES = 4 << 20
MAX_DEPTH = 100
MAX_ITEMS = 100_000
MAX_INT_BITS = (
    1024  # longer integers travel in hexadecimal: Python bounds the decimal digits it converts
)


class WireError(Exception):
    """A message that breaks the protocol."""


class EndError(WireError):
    """The end of the pipe."""


class Channel:
    """Messages as lines over two pipes."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.pending = b""

    def send(self, message: object) -> None:
        """Send a message. Raises WireError for one too long."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise WireError(f"a message of {len(line)} bytes; at most {MAX_MESSAGE_BYTES} are sent")
        view = memoryview(line)
        while view:
            try:
                view = view[os.write(self.target, view) :]
            except BrokenPipeError:
                raise EndError("the process ended") from None

    def receive(self) -> dict[str, object]:
        """Return the next message. Raises EndError at the end of the pipe, WireError for a bad message."""
        parts = [self.pending]
        size = len(self.pending)
        while b"\n" not in parts[-1]:
            part = os.read(self.source, 1 << 16)
            size += len(part)
            if not part:
                raise EndError("the process ended")
            if size > MAX_MESSAGE_BYTES:
                raise WireError(f"a message longer than {MAX_MESSAGE_BYTES} bytes")
            parts.append(part)
        line, _, self.pending = b"".join(parts).partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise WireError("a message that is not JSON") from None
        if not isinstance(message, dict):
            raise WireError("a message that is not an object")
        return message


def encode(value: object, keep: Callable[[object], object], depth: int = 0) -> object:
    """Return the JSON form of a value; `keep` gives that of an object that stays here.

    Raises WireError for values nested too deeply or with too many items.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if depth > MAX_DEPTH:
        raise WireError(f"a value nested more than {MAX_DEPTH} deep")
    scalar = _scalar(value)
    if scalar is not None:
        return scalar
    name, parts = _parts(value)
    if not name:
        return keep(value)
    result: list[object] = []
    for item in parts:
        if len(result) == MAX_ITEMS:
            raise WireError(f"more than {MAX_ITEMS} items")
        result.append(encode(item, keep, depth + 1))
    return {name: result}


CONTAINERS: dict[str, Callable[[Iterable[object]], object]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "iterator": iter,
    "keys": lambda items: dict.fromkeys(items).keys(),
}
VIEWS: tuple[type[Iterable[object]], ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _parts(value: object) -> tuple[str, Iterable[object]]:
    """Return the name of a container and its items; "" for others."""
    if isinstance(value, dict):
        return "dict", value.items()
    for kind in (list, tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return kind.__name__, value
    if isinstance(value, Iterator):
        return "iterator", value
    return ("keys", value) if isinstance(value, VIEWS) else ("", ())


def _scalar(value: object) -> object:
    """Return the JSON form of a number, of bytes or of a range; None for anything else."""
    if (
        type(value).__module__ == "numpy"
        and hasattr(value, "item")
        and not hasattr(value, "__len__")
    ):
        value = value.item()  # a scalar
    if isinstance(value, int):
        number = int.__int__(value)
        return number if number.bit_length() < MAX_INT_BITS else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: bytes(value).hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    return None


def decode(data: object, handle: Callable[[dict[str, object]], object]) -> object:
    """Return the value of its JSON form; `handle` gives that of an object that stays in the other process.

    Raises WireError for anything else.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if not isinstance(data, dict) or not data:
        raise WireError("a value of unknown form")
    name, content = next(iter(data.items()))
    try:
        if name == "handle":
            return handle(data)
        if name in BUILT:
            return BUILT[name](content)
        assert isinstance(content, list), "containers hold lists"
        values = [decode(item, handle) for item in content]
        if name == "dict":
            return dict(values)  # type: ignore[arg-type]
        return CONTAINERS[name](values)
    except (AssertionError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
        raise WireError("a value of unknown form") from None


BUILT: dict[str, Callable[..., object]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda parts: range(*parts),
    "Decimal": Decimal,
    "Fraction": Fraction,
}
