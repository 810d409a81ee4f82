"""The processes in which chat templates and tokenizers run: a fork server and its workers.

The fork server imports transformers and then forks a worker for every connection that it is sent; it runs
nothing of a checkpoint itself. A worker gets a tokenizer and answers one call after another. The kernel
ends it when a call exceeds its processor time (`ITIMER_PROF`), its time (`ITIMER_REAL`) or, in code that
cannot raise MemoryError, its memory (`RLIMIT_AS`). That needs no cooperation of Python, so that a loop in C
ends as well. A worker cannot write files, and is the kernel's first choice when memory runs out. All of
them end with the process that started the server.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.engine.text_calls import encode, render
from unmask.engine.text_frames import (
    CALL,
    FrameError,
    packed,
    receive_frame,
    send_frame,
    unpacked,
)
from unmask.errors import UnmaskError

PRELOADED = ("jinja2.sandbox", "transformers.utils.chat_template_utils", "unmask.engine.tokenizer")


def serve_forks(descriptor: int, max_bytes: int) -> None:
    """Fork a worker for every connection received on a socket, until it is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers leave no zombies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _preload()
    with open(os.devnull, "r+b", buffering=0) as null:
        os.dup2(null.fileno(), 2)
    gc.freeze()
    control = socket.socket(fileno=descriptor)
    try:
        while True:
            data, received, _, _ = socket.recv_fds(control, 1, 4)
            if not data:
                break
            for each in received:
                with contextlib.suppress(
                    OSError
                ):  # no process: the other end sees the connection close
                    if os.fork() == 0:
                        _run_worker(control, each, max_bytes)
                os.close(each)
    finally:
        os.killpg(os.getpid(), signal.SIGKILL)


def _preload() -> None:
    """Import what workers need, so that each of them starts in milliseconds."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("PreTrainedTokenizerFast", "Qwen2Tokenizer"):
        getattr(importlib.import_module("transformers"), name)  # imported at first use


def _run_worker(control: socket.socket, descriptor: int, max_bytes: int) -> None:
    """Answer calls until the connection closes; never return."""
    try:
        control.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = max_bytes if hard == resource.RLIM_INFINITY else min(max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        with socket.socket(fileno=descriptor) as connection:
            Worker(connection).run()
    finally:
        os._exit(0)


class Worker:
    """The calls of one connection. `tokenizer`: the one received last."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.tokenizer: Any = None

    def run(self) -> None:
        """Answer calls until the connection closes."""
        while True:
            try:
                head = receive_frame(self.connection)
            except (FrameError, OSError):
                return
            processor_s, time_s = CALL.unpack_from(head)
            signal.setitimer(signal.ITIMER_PROF, processor_s)
            signal.setitimer(signal.ITIMER_REAL, time_s)
            reply = self._reply(head[CALL.size :])
            send_frame(self.connection, reply)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _reply(self, data: bytes) -> bytes:
        """Return the reply to a call: its value, or the name and the message of an error."""
        try:
            call = unpacked(data)
            assert isinstance(call, dict), "the pool sends mappings"
            return packed({"value": self._value(call)})
        except UnmaskError as error:
            return packed({"error": type(error).__name__, "message": str(error)})
        except MemoryError:
            return packed({"error": "MemoryError", "message": ""})

    def _value(self, call: Mapping[str, Any]) -> object:
        """Return the value of a call, made with the tokenizer. Raises UnmaskError and MemoryError."""
        match call["call"]:
            case "render":
                return render(self.tokenizer, call["template"], call["messages"], call["variables"])
            case "encode":
                return encode(self.tokenizer, call["text"], special=call["special"])
            case "take":
                # written by the process that asks, of an object that it has loaded
                self.tokenizer = pickle.loads(receive_frame(self.connection))
                return None
            case _:
                from unmask.engine.tokenizer import try_tokenizer

                try_tokenizer(Path(call["folder"]))
                return None


def main() -> None:
    """Serve forks on the descriptor, with the memory limit and the import path of the arguments."""
    serve_forks(int(sys.argv[1]), int(sys.argv[2]))
