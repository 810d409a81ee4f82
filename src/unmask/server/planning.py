"""Planning of requests in threads, a few at once, each within its time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import anyio

from unmask.engine.text_pool import time_limit
from unmask.engine.threads import ErrorCapture
from unmask.server.errors import timed_out

MAX_PLANNING = 4
"""Requests that are tokenized and planned at once; long ones must not take every core from decoding."""
MAX_PLAN_S = 30.0
"""Maximum time of a plan's templates and tokenizing, whatever time the request has."""
Result = TypeVar("Result")


class Planning:
    """Up to `MAX_PLANNING` calls at once, each in a thread of its own.

    A call that outlasts its request keeps its place until it ends, so that the number of threads is
    bounded; templates and tokenizers, which may loop, end with the request's time (`time_limit`).
    """

    def __init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(MAX_PLANNING)
        self._moved_s = time.monotonic()

    @property
    def num_running(self) -> int:
        """Calls in progress."""
        return int(self.limiter.borrowed_tokens)

    @property
    def num_waiting(self) -> int:
        """Calls that wait for a place."""
        return self.limiter.statistics().tasks_waiting

    @property
    def stalled_s(self) -> float:
        """Seconds for which all places have been taken by the same calls; 0 while one is free."""
        is_full = self.num_running >= MAX_PLANNING
        return time.monotonic() - self._moved_s if is_full else 0.0

    async def run(self, call: Callable[[], Result], timeout_s: float, arrived_s: float) -> Result:
        """Return the result of a call, made in a thread. Raises ApiError (504), and what the call raises.

        `timeout_s` counts from `arrived_s` of the monotonic clock, and includes the wait for a place.
        """
        until_s, place = arrived_s + timeout_s, object()
        with anyio.move_on_after(until_s - time.monotonic()):
            await self.limiter.acquire_on_behalf_of(place)
            # Nothing is awaited from here to the thread's start: its end frees the place.
            self._moved_s = time.monotonic()
            future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            self._start(call, until_s, place, future)
            try:
                return await future
            except Exception:
                if time.monotonic() < until_s:
                    raise
        raise timed_out(timeout_s)

    def _start(
        self,
        call: Callable[[], Result],
        until_s: float,
        place: object,
        future: asyncio.Future[Result],
    ) -> None:
        """Start the thread of a call. It is a daemon: one that hangs does not keep the process."""
        results: list[Result] = []
        capture = ErrorCapture(everything=True)
        loop = future.get_loop()

        def finish() -> None:
            self._moved_s = time.monotonic()
            self.limiter.release_on_behalf_of(place)
            if future.done():  # the request has left
                return
            if capture.error is None:
                future.set_result(results[0])
            else:
                future.set_exception(capture.error)

        def run() -> None:
            with capture, time_limit(min(MAX_PLAN_S, until_s - time.monotonic())):
                results.append(call())
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish)

        threading.Thread(target=run, name="unmask-plan", daemon=True).start()
