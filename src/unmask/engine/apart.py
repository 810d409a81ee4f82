"""Work in a thread of its own, which is gone afterwards.

OpenMP keeps a team of workers for every thread that has computed something in parallel, as long as that
thread lives. Once all teams together have more workers than the machine has cores, GNU's OpenMP lets them
sleep between two operations instead of waiting awake: an engine's forwards take half as long again.
So in a server nothing but the engine's thread computes and stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def apart(call: Callable[[], Result]) -> Result:
    """What `call` returns, or raises, in another thread."""
    found: list[Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="unmask-apart", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]
