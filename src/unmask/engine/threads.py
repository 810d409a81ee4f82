"""Short-lived threads, and the capture of exceptions.

OpenMP keeps a team of workers for every live thread that has run a parallel region. Once the teams together
have more workers than the machine has cores, GNU's OpenMP suspends them between two operations instead of
spinning, and an engine's forwards take 1.5 times as long. So in a server, the engine's thread is the only
long-lived thread that computes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from typing_extensions import ParamSpec

Result = TypeVar("Result")
Params = ParamSpec("Params")


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


async def call_in_thread(
    call: Callable[Params, Result], /, *args: Params.args, **options: Params.kwargs
) -> Result:
    """Return the result of a call in a thread, or raise what it raises, as `asyncio.to_thread`.

    That one never ends for a StopIteration before Python 3.12.
    """

    def run() -> Result:
        with ErrorCapture() as capture:
            return call(*args, **options)
        assert capture.error is not None, "the call has neither returned nor raised"
        raise capture.error

    return await asyncio.to_thread(run)


class ErrorCapture:
    """A context manager that stores an exception raised in its body as `error`; None if there was none.

    The caller must handle `error`. KeyboardInterrupt and SystemExit propagate, unless `everything`. A
    StopIteration becomes a RuntimeError, as at the end of a generator: no future takes one.
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
        if isinstance(error, StopIteration):
            self.error = RuntimeError(f"raised {error!r}")
            self.error.__cause__ = error
        return isinstance(error, self.types)
