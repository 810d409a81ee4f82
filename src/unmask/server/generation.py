"""The answers of one HTTP request, decoded at once: submitted together, followed, and given up together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from unmask.caches.registry import describe as describe_cache
from unmask.canvas import Canvas
from unmask.decoders.registry import describe
from unmask.engine.outputs import Output
from unmask.errors import CapacityError, ConfigError, EngineError, PromptError, UnmaskError
from unmask.server.canvas_frames import Confidences, frame
from unmask.server.detokenizer import TextStream
from unmask.server.errors import ApiError, clean, engine_dead, of_user, stopping, timed_out
from unmask.server.request_planner import GenerationPlan

if TYPE_CHECKING:
    from unmask.engine.engine import Engine, RequestHandle, RequestUpdate
    from unmask.engine.output_processor import Text
    from unmask.engine.token_text import TokenTexts


log = logging.getLogger("unmask.server")


class Generation:
    """Decodes plans through an engine that runs in its own thread.

    The request arrived at `arrived_s` of the monotonic clock, and its `timeout_s` count from there.
    `first_text_s` are seconds from its arrival to the first text that stays, `queue_s` those from its
    submission to the first forward (None: not yet); `paces` tell when the answers' tokens were there. How
    fast a client reads is in none of them. `error` is what ended it, if not its own end.
    """

    def __init__(
        self,
        engine: Engine,
        plans: list[GenerationPlan],
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
        self._tickets: list[RequestHandle] = []
        self._updates: asyncio.Queue[tuple[int, RequestUpdate, float]] = asyncio.Queue()

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

        def listen(number: int, update: RequestUpdate) -> None:
            told = number, update, self.seconds
            loop.call_soon_threadsafe(self._updates.put_nowait, told)

        try:
            for number, answer in enumerate(self.answers):
                handle = self.engine.submit(
                    answer.plan.request,
                    partial(listen, number),
                    deadline_s=left_s,
                )
                self._tickets.append(handle)
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
        for handle, answer in zip(self._tickets, self.answers, strict=False):
            if answer.reason is None:
                self.engine.abort(handle)

    async def updates(self) -> AsyncIterator[tuple[Answer, RequestUpdate, str]]:
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

    def _failure(self, update: RequestUpdate) -> ApiError:
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


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token of the answer and its log-probability in nats when it was committed (None: not known)."""

    token: int
    logprob: float | None


class Answer:
    """Fed with the engine's updates in their order.

    `reason` is None until the answer is over. `text` is what has been released, all of it then.
    """

    def __init__(self, plan: GenerationPlan, decode: Text) -> None:
        self.plan = plan
        has_given = plan.request.canvas.infilling and plan.start == 0  # they are answered too
        given = plan.request.canvas.fixed if has_given else None
        self.stream = TextStream(partial(decode, given=given), plan.ends, plan.start, plan.size)
        self.confidences = Confidences()
        self.canvas: Canvas = plan.request.canvas
        self.num_forwards, self.num_queries, self.num_settled, self.num_cached = 0, 0, 0, 0
        self.reason: str | None = None
        self.output: Output | None = None

    @property
    def index(self) -> int:
        """The choice's number."""
        return self.plan.index

    @property
    def text(self) -> str:
        """The released text."""
        return self.stream.text

    @property
    def is_infill(self) -> bool:
        """Whether the answer is a given text with its blanks filled, not the middle of one."""
        return self.plan.request.canvas.infilling and self.plan.size is None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer that are certain, without its end; of an infill the filled ones."""
        if self.is_infill:
            return int((~self.canvas.fixed[: self.num_settled]).sum())
        return self.stream.num_tokens

    @property
    def num_wasted(self) -> int:
        """Positions computed right of the end token, of `num_queries`; 0 until the answer is over."""
        return 0 if self.output is None else self.output.num_wasted

    @property
    def found_stop(self) -> bool:
        """Whether the text is over although the engine may not know it: a stop string was found."""
        return self.stream.ended is not None

    def take(self, update: RequestUpdate) -> str:
        """The text that an update makes certain."""
        if update.kind == "step":
            self.confidences.follow(update.before, update.edit)
        self.canvas = update.canvas
        self.num_forwards, self.num_queries = update.num_forwards, update.num_queries
        self.num_settled = update.num_settled
        self.num_cached = min(update.num_cached, self.plan.num_prompt)
        is_last = update.kind == "done"
        if is_last:
            self.output = update.output
            if self.canvas.num_open == 0:
                self.num_settled = len(self.canvas)
        new = self.stream.feed(self.canvas, self.num_settled, is_last=is_last)
        if is_last:
            self.reason = self._finish_reason(update.output)
        return new

    def _finish_reason(self, output: Output | None) -> str:
        if self.stream.ended is not None:
            return self.stream.ended
        if output is None or not self.plan.ends.stop_ids:
            return "length"
        return output.finish_reason

    def blanks(self) -> list[str]:
        """The filled texts of an infill, when it is over."""
        return [] if self.output is None else list(self.output.blanks)

    def probabilities(self) -> list[TokenProbability]:
        """The answer's certain tokens."""
        if self.is_infill:
            positions = [i for i in range(self.num_settled) if not self.canvas.fixed[i]]
        else:
            positions = list(range(self.plan.start, self.plan.start + self.stream.num_tokens))
        return [
            TokenProbability(
                int(self.canvas.tokens[position]),
                self.confidences.log_probability(int(self.canvas.uid[position])),
            )
            for position in positions
        ]

    def first_frame(self, update: RequestUpdate, pieces: TokenTexts) -> dict[str, Any]:
        """The canvas before the first forward, of the first update."""
        return frame(update.before, None, Confidences(), pieces, forward=0, num_settled=0)

    def frame(self, update: RequestUpdate, pieces: TokenTexts) -> dict[str, Any]:
        """The canvas after an update that was taken."""
        changed = (update.before, update.edit) if update.kind == "step" else None
        return frame(
            self.canvas,
            changed,
            self.confidences,
            pieces,
            forward=self.num_forwards,
            num_settled=self.num_settled,
            end_ids=self.plan.request.stop_ids,
        )

    def method(self) -> dict[str, Any]:
        """How it was decoded, with what is needed to repeat it."""
        request = self.plan.request
        return {
            "decoder": describe(request.decoder),
            "cache": describe_cache(request.cache),
            "cache_exact": bool(request.cache.exact),
            "seed": request.seed,
        }


BLOCK_LENGTH = 32
"""Tokens of a block, whatever the decoder takes for one; that of `unmask bench serve`."""


@dataclass
class Pace:
    """Times in seconds since the request arrived.

    A block has come when its last token is certain: `BLOCK_LENGTH` tokens, or the answer's end. `first_s`
    and `last_s`: when tokens were certain for the first time and when for the last (None: not yet).
    """

    num_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    blocks_s: list[float] = field(default_factory=list)

    def take(self, now_s: float, num_tokens: int, *, is_last: bool) -> None:
        """`num_tokens` of the answer are certain now."""
        if num_tokens > self.num_tokens:
            self.first_s = now_s if self.first_s is None else self.first_s
            self.num_tokens, self.last_s = num_tokens, now_s
        num_new = num_tokens // BLOCK_LENGTH - len(self.blocks_s)
        self.blocks_s.extend([now_s] * num_new)
        if is_last and self.last_s is not None and num_tokens > len(self.blocks_s) * BLOCK_LENGTH:
            self.blocks_s.append(self.last_s)

    @property
    def between_s(self) -> list[float]:
        """From each block to the next."""
        return [later - sooner for sooner, later in pairwise(self.blocks_s)]

    @property
    def per_token_s(self) -> float | None:
        """Of a token after the first ones, on average; None for fewer than two."""
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)
