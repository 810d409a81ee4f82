"""Rendering and tokenizing within limits of time and memory, in processes that can be killed.

A chat template is a program, and so are the normalizers and regular expressions of a tokenizer. Both come
with the checkpoint: one of them may loop, allocate without end, or crash the process. See
docs/decisions/0011-text-workers.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unmask.engine import text_calls
from unmask.engine.fast_tokenizer import FastTokenizer
from unmask.engine.text_frames import CALL, FrameError, packed, receive_frame, send_frame, unpacked
from unmask.errors import ModelError, PromptError, TextLimitError

MAX_WORKERS = 4
"""Processes of one pool; further calls wait."""
GRACE_S = 2.0
"""Time beyond a call's own in which the kernel must have ended its worker."""
UNTIL_S: ContextVar[float | None] = ContextVar("UNTIL_S", default=None)
"""Time of the monotonic clock at which the calls of this context end; set by `time_limit`."""
VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
)
"""Variables of the environment that the fork server keeps; keys and tokens are not among them."""
FIXED = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PROGRAM = """
import json, os, sys
path, variables, fixed = json.loads(sys.argv[3])
for name in os.environ.keys() - set(variables):
    del os.environ[name]
os.environ.update(fixed)
sys.path[:] = path
from unmask.engine.text_worker import main
main()
"""


@dataclass(frozen=True)
class TextLimits:
    """Limits of one call in a worker: seconds of processor time, seconds, and bytes of address space."""

    processor_s: float = 5.0
    time_s: float = 30.0
    max_bytes: int = 2 << 30


CALL_LIMITS = TextLimits()
LOAD_LIMITS = TextLimits(processor_s=60.0, time_s=180.0)
"""Limits of reading a tokenizer, the import of transformers included."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the time of all calls in this context; a limit set outside stays valid."""
    outer, until = UNTIL_S.get(), time.monotonic() + seconds
    token = UNTIL_S.set(until if outer is None else min(outer, until))
    try:
        yield
    finally:
        UNTIL_S.reset(token)


def remaining_s(most: float) -> float:
    """Return the seconds that a call may take: `most`, or less within `time_limit`."""
    until = UNTIL_S.get()
    return most if until is None else min(most, until - time.monotonic())


class ForkServer:
    """The process that forks workers, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = 0

    def start(self) -> None:
        """Start the process without waiting for it, unless it runs. Raises OSError."""
        with self._lock:
            self._start()

    def connect(self) -> socket.socket:
        """Return a connection to a new worker. Raises OSError."""
        with self._lock:
            for is_last in (False, True):
                control = self._start()
                ours, theirs = socket.socketpair()
                with theirs:
                    try:
                        socket.send_fds(control, [b"f"], [theirs.fileno()])
                        return ours
                    except OSError:
                        ours.close()
                        self._stop()
                        if is_last:
                            raise
        raise AssertionError("the last attempt returns or raises")

    def _start(self) -> socket.socket:
        if self._owner != os.getpid():  # this process was forked: the server is its parent's
            self._process = self._control = None
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair()
        own = [str(theirs.fileno()), str(CALL_LIMITS.max_bytes)]
        setting = json.dumps([sys.path, VARIABLES, FIXED])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", "-c", PROGRAM, *own, setting],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # signals of the terminal are for the caller
            )
        self._control, self._owner = ours, os.getpid()
        weakref.finalize(self, _end_server, self._process, ours, self._owner)
        return ours

    def _stop(self) -> None:
        if self._process is not None and self._control is not None:
            _end_server(self._process, self._control, self._owner)
        self._process = self._control = None


def _end_server(process: subprocess.Popen[bytes], control: socket.socket, owner: int) -> None:
    """Kill the server and its workers, which are its process group."""
    control.close()
    if owner == os.getpid() and process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def fork_server() -> ForkServer:
    """Return the fork server of this process."""
    return ForkServer()


class CallEnded(Exception):
    """A worker that ended during a call, by a limit or a crash; the message says which."""


class WorkerConnection:
    """A connection to one worker; it is used by one thread at a time, and closed by an error of its own."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._socket = fork_server().connect()
        self._closing = weakref.finalize(self, self._socket.close)

    def call(
        self,
        call: Mapping[str, object],
        limits: TextLimits = CALL_LIMITS,
        attachment: bytes | None = None,
    ) -> object:
        """Return the value of a call. Raises CallEnded, and PromptError and ModelError of the call."""
        began, time_s = time.monotonic(), remaining_s(limits.time_s)
        if time_s <= 0:
            raise CallEnded("has no time left")
        processor_s = min(limits.processor_s, time_s)
        data = CALL.pack(processor_s, time_s) + packed(call)
        self._socket.settimeout(time_s + GRACE_S)
        try:
            send_frame(self._socket, data)
            if attachment is not None:
                send_frame(self._socket, attachment)
            reply = unpacked(receive_frame(self._socket))
        except (FrameError, OSError):
            self.close()
            if time.monotonic() - began >= 0.9 * processor_s:
                raise CallEnded(f"takes more than {processor_s:.3g} s") from None
            raise CallEnded(
                f"crashes its process, or needs more than {limits.max_bytes >> 20} MiB of memory"
            ) from None
        if isinstance(reply, dict) and "value" in reply:
            return reply["value"]
        error, message = "", ""
        if isinstance(reply, dict):
            error, message = str(reply.get("error")), str(reply.get("message"))
        if error == "MemoryError":
            self.close()
            raise CallEnded(f"needs more than {limits.max_bytes >> 20} MiB of memory")
        raise (ModelError if error == "ModelError" else PromptError)(message)

    def stop(self) -> None:
        """End a call that another thread waits for."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; an idle worker ends at once, a busy one within its limits."""
        self._closing()


class TextPool:
    """The templates and the tokenizer of one model, in up to `MAX_WORKERS` workers. Thread-safe.

    A tokenizer of a folder or of transformers is copied to a worker when it is first used, and must not
    change afterwards.
    An object of another class is the caller's own code, and is called directly; so are tokenizer and
    templates of a model that comes with this package (`is_own`).

    `num_stopped`: calls that ended by a limit or a crash.
    """

    def __init__(self, tokenizer: Any, *, is_own: bool = False) -> None:
        self.tokenizer, self.num_stopped = tokenizer, 0
        is_foreign = not isinstance(tokenizer, FastTokenizer) and not _is_of_transformers(tokenizer)
        self._is_direct = is_own or is_foreign
        self._direct_templates = None if is_foreign else frozenset(_templates_of(tokenizer, is_own))
        self._changed = threading.Condition()
        self._idle, self._busy = list[WorkerConnection](), set[WorkerConnection]()
        self._num_starting, self._owner = 0, os.getpid()

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, object]],
        variables: Mapping[str, object],
    ) -> str:
        """Return the text of messages in a template. Raises PromptError; TextLimitError for a limit."""
        if self._direct_templates is None or template in self._direct_templates:
            return text_calls.render(self.tokenizer, template, messages, variables)
        call = {
            "call": "render",
            "template": template,
            "messages": messages,
            "variables": variables,
        }
        text = self._call(
            call,
            "the model's chat template",
            "shorten the conversation, or choose another template with chat_template= "
            "(--chat-template)",
        )
        if not isinstance(text, str):
            raise PromptError(f"the model's chat template gives a {type(text).__name__}, no text")
        return text

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text. Raises PromptError; TextLimitError for a limit."""
        if self._is_direct:
            return text_calls.encode(self.tokenizer, text, special=special)
        ids = self._call(
            {"call": "encode", "text": text, "special": special},
            f"the model's tokenizer, for a text of {len(text)} characters,",
            "shorten the text, or repair the model's tokenizer.json",
        )
        if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
            raise PromptError("the model's tokenizer gives no token ids; repair tokenizer.json")
        return ids

    def stop(self) -> None:
        """End all workers; calls in progress fail, later ones start others."""
        with self._changed:
            connections = [*self._idle, *self._busy]
            self._idle.clear()
        for each in connections:
            each.stop()

    def _call(self, call: Mapping[str, object], subject: str, remedy: str) -> object:
        """Return the value of a call in a free worker."""
        worker: WorkerConnection | None = None
        is_usable = False
        try:
            worker = self._take()
            value = worker.call(call)
            is_usable = True
        except CallEnded as error:
            self.num_stopped += 1
            raise TextLimitError(f"{subject} {error} and was stopped; {remedy}") from None
        except PromptError:
            is_usable = True
            raise
        finally:
            if worker is not None:
                self._give(worker, is_usable)
        return value

    def _take(self) -> WorkerConnection:
        """Return a worker that has the tokenizer. Raises CallEnded and PromptError."""
        with self._changed:
            if self._owner != os.getpid():  # a fork: the workers are its parent's
                self._idle, self._busy, self._num_starting = [], set(), 0
                self._owner = os.getpid()
            is_free = self._changed.wait_for(
                lambda: bool(self._idle) or len(self._busy) + self._num_starting < MAX_WORKERS,
                max(0.0, remaining_s(CALL_LIMITS.time_s)),
            )
            if not is_free:
                raise CallEnded(f"found all {MAX_WORKERS} processes busy")
            if self._idle:
                worker = self._idle.pop()
                self._busy.add(worker)
                return worker
            self._num_starting += 1
        try:
            worker = self._new_worker()
            with self._changed:
                self._busy.add(worker)
        finally:
            with self._changed:
                self._num_starting -= 1
                self._changed.notify()
        return worker

    def _new_worker(self) -> WorkerConnection:
        """Return a new worker with a copy of the tokenizer, whatever time the request has left."""
        try:
            copy = pickle.dumps(self.tokenizer)
        except Exception as error:  # noqa: BLE001 - pickle calls the object's own methods
            raise PromptError(
                f"the tokenizer cannot be copied to another process ({type(error).__name__}: "
                f"{text_calls.reason_of(error)}); pass it as transformers loads it"
            ) from None
        return Context().run(_connected, copy)

    def _give(self, worker: WorkerConnection, is_usable: bool) -> None:
        """Take a worker back; one whose call ended it leaves room for another."""
        with self._changed:
            self._busy.discard(worker)
            if is_usable:
                self._idle.append(worker)
            else:
                worker.close()
            self._changed.notify()


def _is_of_transformers(tokenizer: object) -> bool:
    return type(tokenizer).__module__.partition(".")[0] == "transformers"


def _connected(copy: bytes) -> WorkerConnection:
    try:
        worker = WorkerConnection()
    except OSError as error:
        raise CallEnded(f"has no process to run in ({error.strerror or error})") from None
    worker.call({"call": "take"}, LOAD_LIMITS, copy)
    return worker


def _templates_of(tokenizer: Any, is_own: bool) -> Iterator[str]:
    """Yield the texts of an own tokenizer's templates."""
    templates = tokenizer.chat_template if is_own else None
    yield from templates.values() if isinstance(templates, dict) else [templates or ""]


def try_in_worker(folder: Path) -> None:
    """Read a folder's tokenizer in a worker, which a hostile file may crash. Raises ModelError."""
    try:
        worker = WorkerConnection()
    except OSError as error:
        raise ModelError(
            f"{folder}: no process can be started to read the tokenizer ({error.strerror or error}); "
            f"allow another process"
        ) from None
    try:
        worker.call({"call": "try", "folder": str(folder.absolute())}, LOAD_LIMITS)
    except CallEnded as error:
        raise ModelError(
            f"{folder}: the tokenizer cannot be read: it {error}; repair or replace tokenizer.json"
        ) from None
    finally:
        worker.close()
