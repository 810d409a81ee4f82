"""Work in a thread of its own, which is gone afterwards.

OpenMP keeps a team of workers for every thread that has computed something in parallel, as long as that
thread lives. Once all teams together have more workers than the machine has cores, GNU's OpenMP lets them
sleep between two operations instead of waiting awake: an engine's forwards take half as long again.
So in a server nothing but the engine's thread computes and stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")


def run_in_thread(call: Callable[[], Result]) -> Result:
    """What `call` returns, or raises, in another thread."""
    found: list[Result] = []
    capture = ErrorCapture(everything=True)

    def run() -> None:
        with capture:
            found.append(call())

    thread = threading.Thread(target=run, name="unmask-apart", daemon=True)
    thread.start()
    thread.join()
    if capture.error is not None:
        raise capture.error
    return found[0]


class ErrorCapture:
    """A context manager that stores an exception raised in its body as `error`; None if there was none.

    The caller must handle `error`. KeyboardInterrupt and SystemExit propagate, unless `everything`.
    """

    def __init__(self, *, everything: bool = False) -> None:
        self.kept: type[BaseException] = BaseException if everything else Exception
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
        return isinstance(error, self.kept)
