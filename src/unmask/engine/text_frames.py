"""Frames between a process and its text workers: a length and a JSON value, or bytes."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import asdict, is_dataclass

from unmask.errors import PromptError

HEAD = struct.Struct("!Q")
CALL = struct.Struct("!dd")
"""Head of a call: maximum processor time and time in seconds; JSON follows."""
MAX_FRAME = 1 << 28
"""Maximum size of a frame in bytes: the longest text that a template may give, in JSON."""


class FrameError(Exception):
    """A frame that ended early, or that is too long."""


def send_frame(connection: socket.socket, data: bytes) -> None:
    """Send one frame. Raises OSError."""
    connection.sendall(HEAD.pack(len(data)) + data)


def receive_frame(connection: socket.socket) -> bytes:
    """Return the next frame. Raises FrameError, and OSError (TimeoutError too)."""
    (size,) = HEAD.unpack(_receive(connection, HEAD.size))
    if size > MAX_FRAME:
        raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME} are allowed")
    return _receive(connection, size)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise FrameError("the other process has ended")
        data += part
    return bytes(data)


def packed(value: object) -> bytes:
    """Return a value as JSON; what JSON does not have is replaced by its plain fields or its type's name.

    Raises PromptError for a value that is nested too deeply or contains itself.
    """
    try:
        return json.dumps(value, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(
            f"the messages cannot be written as JSON ({type(error).__name__}: {str(error)[:200]}); use "
            f"plain texts, numbers, lists and mappings"
        ) from None


def unpacked(data: bytes) -> object:
    """Return the value of a frame. Raises FrameError."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"no JSON ({type(error).__name__})") from None
    return value


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    dump = getattr(value, "model_dump", None)  # of pydantic: tool calls of OpenAI's client
    return dump() if callable(dump) else f"<{type(value).__name__}>"
