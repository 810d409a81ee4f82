"""Short-lived threads, and the capture of exceptions.

OpenMP keeps a team of workers for every live thread that has run a parallel region. Once the teams together
have more workers than the machine has cores, GNU's OpenMP suspends them between two operations instead of
spinning, and an engine's forwards take 1.5 times as long. So in a server, the engine's thread is the only
long-lived thread that computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")


def run_in_thread(call: Callable[[], Result]) -> Result:
    """Call a function in a new thread; return its result or raise its exception."""
    results: list[Result] = []
    capture = ErrorCapture(everything=True)

    def run() -> None:
        with capture:
            results.append(call())

    thread = threading.Thread(target=run, name="unmask-call", daemon=True)
    thread.start()
    thread.join()
    if capture.error is not None:
        raise capture.error
    return results[0]


class ErrorCapture:
    """A context manager that stores an exception raised in its body as `error`; None if there was none.

    The caller must handle `error`. KeyboardInterrupt and SystemExit propagate, unless `everything`.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.types: type[BaseException] = BaseException if everything else Exception
        self.error: BaseException | None = None

    def __enter__(self) -> ErrorCapture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.error = error
        return isinstance(error, self.types)
