"""The answers of one HTTP request, decoded at once: submitted together, followed, and given up together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from unmask.errors import CapacityError, ConfigError, EngineError, PromptError, UnmaskError
from unmask.server.answer import Answer
from unmask.server.errors import ApiError, clean, engine_dead, of_user, stopping, timed_out
from unmask.server.pace import Pace
from unmask.server.plans import Plan

if TYPE_CHECKING:
    from unmask.engine.answers import Text
    from unmask.engine.service import Engine, Ticket, Update

log = logging.getLogger("unmask.server")


class Call:
    """Decodes plans through an engine that runs in its own thread.

    The request arrived at `arrived_s` of the monotonic clock, and its `timeout_s` count from there.
    `first_text_s` are seconds from its arrival to the first text that stays, `queue_s` those from its
    submission to the first forward (None: not yet); `paces` tell when the answers' tokens were there. How
    fast a client reads is in none of them. `error` is what ended it, if not its own end.
    """

    def __init__(
        self,
        engine: Engine,
        plans: list[Plan],
        decode: Text,
        timeout_s: float,
        call_id: str,
        arrived_s: float,
    ) -> None:
        self.engine, self.timeout_s, self.call_id = engine, timeout_s, call_id
        self.answers = [Answer(plan, decode) for plan in plans]
        self.paces = [Pace() for _ in plans]
        self.arrived_s = arrived_s
        self.first_text_s: float | None = None
        self.queue_s: float | None = None
        self.error: ApiError | None = None
        self.user: str | None = None
        self._tickets: list[Ticket] = []
        self._updates: asyncio.Queue[tuple[int, Update, float]] = asyncio.Queue()

    @property
    def is_over(self) -> bool:
        """Whether every answer came to its end."""
        return all(answer.reason is not None for answer in self.answers)

    @property
    def log_id(self) -> str:
        """`call_id` as a log may have it: a client may have chosen it."""
        return clean(self.call_id, 128)

    @property
    def seconds(self) -> float:
        """Since the arrival."""
        return time.monotonic() - self.arrived_s

    def submit(self) -> None:
        """Queue every plan, or none.

        Raises ApiError: 400 for more plans than the queue holds, 429 when it is full, 503 at the end, 504
        when making the plans took all the time.
        """
        if len(self.answers) > self.engine.max_queue:
            raise ApiError(
                400,
                f"{len(self.answers)} answers in one request: the queue holds at most "
                f"{self.engine.max_queue}; send fewer prompts, or a smaller n",
                code="request_too_large",
            )
        left_s = self.timeout_s - self.seconds
        if left_s <= 0:
            raise timed_out(self.timeout_s)
        loop = asyncio.get_running_loop()

        def listen(number: int, update: Update) -> None:
            told = number, update, self.seconds
            loop.call_soon_threadsafe(self._updates.put_nowait, told)

        try:
            for number, answer in enumerate(self.answers):
                ticket = self.engine.submit(
                    answer.plan.request,
                    partial(listen, number),
                    deadline_s=left_s,
                )
                self._tickets.append(ticket)
        except UnmaskError as error:
            self.abort()
            raise self._refusal(error) from None

    def _refusal(self, error: UnmaskError) -> ApiError:
        if isinstance(error, CapacityError):
            if not self.engine.accepts:
                return stopping()
            return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
        if isinstance(error, EngineError):
            return engine_dead()
        return of_user(error)

    def abort(self) -> None:
        """Give up what is not over."""
        for ticket, answer in zip(self._tickets, self.answers, strict=False):
            if answer.reason is None:
                self.engine.abort(ticket)

    async def updates(self) -> AsyncIterator[tuple[Answer, Update, str]]:
        """Every update of every answer with the text it made certain, until all answers are over.

        Raises ApiError: 500 when an answer's own decoding failed, 503 when the engine did or is stopped,
        504 when its time is over.
        """
        num_open = len(self.answers)
        while num_open:
            number, update, told_s = await self._updates.get()
            answer = self.answers[number]
            if update.kind not in ("step", "done"):
                raise self._failure(update)
            had_stop = answer.found_stop
            text = answer.take(update)
            if self.queue_s is None:
                self.queue_s = update.queue_s
            is_last = answer.reason is not None
            self.paces[number].take(told_s, answer.num_tokens, is_last=is_last)
            if text and self.first_text_s is None:
                self.first_text_s = told_s
            if answer.found_stop and not had_stop and update.kind == "step":
                self._tickets[number].finish()
            num_open -= answer.reason is not None
            yield answer, update, text

    async def run(self) -> None:
        """Follow all answers to their ends."""
        async for _ in self.updates():
            pass

    def _failure(self, update: Update) -> ApiError:
        if update.kind == "timeout":
            return timed_out(self.timeout_s)
        if update.kind == "aborted":
            return stopping()
        if self.engine.failure is not None or isinstance(update.error, EngineError):
            log.critical("%s lost: the engine has failed", self.log_id, exc_info=update.error)
            return engine_dead()
        if isinstance(update.error, (ConfigError, PromptError)):
            return of_user(update.error)
        log.error("%s decoding failed", self.log_id, exc_info=update.error)
        return ApiError(500, "decoding this request failed; the log has the reason", code="failed")
