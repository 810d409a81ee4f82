"""Generation of the answers to one HTTP request: submitted, followed and aborted together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from unmask.caches.registry import describe as describe_cache
from unmask.canvas import Canvas, Reading
from unmask.decoders.registry import describe as describe_decoder
from unmask.engine.origin import ModelOrigin
from unmask.engine.outputs import FinishReason, Output
from unmask.engine.text_stream import TextStream
from unmask.errors import (
    CapacityError,
    ConfigError,
    EngineError,
    PromptError,
    UnmaskError,
)
from unmask.server.canvas_frames import Confidences, canvas_frame
from unmask.server.errors import (
    ApiError,
    engine_dead,
    failed,
    library_error,
    sanitize,
    server_stopping,
    timed_out,
)
from unmask.server.reply_models import MethodFields, StreamFrame
from unmask.server.request_log import RequestRecord
from unmask.server.request_planner import GenerationPlan

if TYPE_CHECKING:
    from unmask.engine.engine import Engine, RequestHandle, RequestUpdate
    from unmask.engine.output_processor import TextDecoder
    from unmask.engine.token_text import TokenTexts

log = logging.getLogger("unmask.server")

RETRY_S = 0.05
"""Time until plans that wait for room in a full queue are submitted again."""


@dataclass(frozen=True)
class Origins:
    """The model's origin after each number of updates of its weights, and the versions of packages."""

    models: list[ModelOrigin]
    versions: dict[str, str]


class Generation:
    """The answers to one request, decoded by an engine that runs in its own thread.

    The request arrived at `arrived_s` of the monotonic clock, from which its `timeout_s` counts. At most
    `window` of its answers are in the engine at once, the others follow as these are complete; None: all
    are submitted together.
    `first_text_s`: seconds from its arrival to the first final text; `queue_s`: seconds from submission to
    the first forward (None: not yet); `timings`: one per answer. None of these depends on how fast the
    client reads. `error`: the error that ended the request, if any.
    """

    def __init__(
        self,
        engine: Engine,
        plans: list[GenerationPlan],
        decode: TextDecoder,
        timeout_s: float,
        request_id: str,
        arrived_s: float,
        origins: Origins,
        window: int | None = None,
    ) -> None:
        self.engine, self.timeout_s, self.request_id = engine, timeout_s, request_id
        self.window = window
        self.answers = [Answer(plan, decode, origins) for plan in plans]
        self.timings = [TokenTimings() for _ in plans]
        self.arrived_s = arrived_s
        self.first_text_s: float | None = None
        self.queue_s: float | None = None
        self.error: ApiError | None = None
        self.user: str | None = None
        self.record: RequestRecord | None = None
        self._handles: list[RequestHandle] = []
        self._submitted_s: list[float] = []
        self._num_complete = 0
        self._updates: asyncio.Queue[tuple[int, RequestUpdate, float]] = asyncio.Queue()

    @property
    def is_complete(self) -> bool:
        """True if every answer is complete."""
        return all(answer.finish_reason is not None for answer in self.answers)

    @property
    def log_id(self) -> str:
        """The request id, made safe for a log: a client may have chosen it."""
        return sanitize(self.request_id, 128)

    @property
    def seconds(self) -> float:
        """Seconds since the arrival of the request."""
        return time.monotonic() - self.arrived_s

    def submit(self) -> None:
        """Submit all plans, or none of them; with a window the first ones, at least one.

        Raises ApiError: 429 if the queue is full, 503 if the server is stopping or its engine has failed,
        504 if planning has taken the whole timeout.
        """
        try:
            self._fill()
        except Exception:
            self.abort()
            raise

    def _fill(self) -> None:
        """Submit the next plans, as many as the window has room for. Raises ApiError.

        A queue that others have filled ends it without an error, once the first plan has been accepted.
        """
        loop = asyncio.get_running_loop()

        def listen(index: int, update: RequestUpdate) -> None:
            loop.call_soon_threadsafe(self._updates.put_nowait, (index, update, self.seconds))

        while len(self._handles) < len(self.answers) and self._num_inside < self._most_inside:
            index, now_s = len(self._handles), self.seconds
            if now_s >= self.timeout_s:
                raise timed_out(self.timeout_s)
            try:
                handle = self.engine.submit(
                    self.answers[index].plan.request,
                    partial(listen, index),
                    deadline_s=self.timeout_s - now_s,
                )
            except UnmaskError as error:
                is_full = isinstance(error, CapacityError) and self.engine.accepts
                if is_full and self.window is not None and self._handles:
                    return
                raise submit_error(error, self.engine) from None
            self._handles.append(handle)
            self._submitted_s.append(now_s)

    @property
    def _num_inside(self) -> int:
        """The number of answers that the engine has and that are not complete."""
        return len(self._handles) - self._num_complete

    @property
    def _most_inside(self) -> int:
        return len(self.answers) if self.window is None else self.window

    async def _next_update(self) -> tuple[int, RequestUpdate, float]:
        """Return the next update; submit what the window has room for before it. Raises ApiError."""
        self._fill()
        while not self._num_inside:  # others have filled the queue
            await asyncio.sleep(RETRY_S)
            self._fill()
        return await self._updates.get()

    def abort(self) -> None:
        """Abort the answers that are not complete."""
        for handle, answer in zip(self._handles, self.answers, strict=False):
            if answer.finish_reason is None:
                self.engine.abort(handle)

    async def updates(self) -> AsyncIterator[tuple[Answer, RequestUpdate, str]]:
        """Yield every update with its answer and the text that it made final, until all are complete.

        Raises ApiError: 500 if decoding an answer fails, 503 if the engine fails or stops, 504 after the
        timeout.
        """
        num_incomplete = len(self.answers)
        while num_incomplete:
            index, update, now_s = await self._next_update()
            answer = self.answers[index]
            if update.kind not in ("step", "done"):
                raise self._update_error(update)
            had_stop = answer.has_stop
            text = answer.add(update)
            if self.queue_s is None:
                self.queue_s = update.queue_s
            if update.queue_s is not None:
                self.timings[index].started_s = self._submitted_s[index] + update.queue_s
            is_complete = answer.finish_reason is not None
            self.timings[index].add(now_s, answer.num_tokens, is_complete=is_complete)
            if text and self.first_text_s is None:
                self.first_text_s = now_s
            if answer.has_stop and not had_stop and update.kind == "step":
                self._handles[index].finish()
            num_incomplete -= is_complete
            self._num_complete += is_complete
            yield answer, update, text

    async def run(self) -> None:
        """Consume all updates."""
        async for _ in self.updates():
            pass

    def _update_error(self, update: RequestUpdate) -> ApiError:
        if update.kind == "timeout":
            return timed_out(self.timeout_s)
        if update.kind == "aborted":
            return server_stopping()
        if self.engine.failure is not None or isinstance(update.error, EngineError):
            log.critical("%s failed with the engine", self.log_id, exc_info=update.error)
            return engine_dead()
        if isinstance(update.error, (ConfigError, PromptError)):
            return library_error(update.error)
        return failed(update.error, self.log_id)


@dataclass(frozen=True, slots=True)
class CommittedToken:
    """A token, its log-probability in nats at its commit (None: not available), and the forward of it.

    Forwards count from 1; None: no forward decided it. `likeliest`: ids and log-probabilities of the
    likeliest and the named tokens then, if they were requested.
    """

    token: int
    logprob: float | None
    forward: int | None
    likeliest: list[tuple[int, float]]


class Answer:
    """One choice of a reply; its updates must be added in order.

    `finish_reason` is None until the answer is complete. `text` is the part of the text that is final.
    """

    def __init__(self, plan: GenerationPlan, decode: TextDecoder, origins: Origins) -> None:
        self.plan, self.origins = plan, origins
        # an infill's reply contains the fixed tokens, special ones too
        has_fixed = plan.request.canvas.infilling and plan.start == 0
        fixed = plan.request.canvas.fixed if has_fixed else None
        self.stream = TextStream(partial(decode, fixed=fixed), plan.ends, plan.start, plan.size)
        self.confidences = Confidences()
        self.canvas: Canvas = plan.request.canvas
        self.num_forwards, self.num_queries, self.num_settled, self.num_cached = 0, 0, 0, 0
        self.num_draft_forwards, self.num_draft_queries = 0, 0
        self.finish_reason: FinishReason | None = None
        self.output: Output | None = None
        self.reading: Reading | None = None
        self.weights_version = 0

    @property
    def index(self) -> int:
        """The index of the choice."""
        return self.plan.index

    @property
    def text(self) -> str:
        """The final text so far."""
        return self.stream.text

    @property
    def is_infill(self) -> bool:
        """True for a text with filled blanks, False for a continuation or a middle."""
        return self.plan.request.canvas.infilling and self.plan.size is None

    @property
    def num_tokens(self) -> int:
        """The number of final tokens, without the end token; of an infill the filled ones."""
        if self.is_infill:
            return int((~self.canvas.fixed[: self.num_settled]).sum())
        return self.stream.num_tokens

    @property
    def num_wasted(self) -> int:
        """Positions of `num_queries` to the right of the end token; 0 until the answer is complete."""
        return 0 if self.output is None else self.output.num_wasted

    @property
    def has_stop(self) -> bool:
        """True if a stop string or end token was found, which the engine may not know of."""
        return self.stream.finish_reason is not None

    def add(self, update: RequestUpdate) -> str:
        """Add an update; return the text that it made final."""
        if self.plan.keeps_reading:
            self.reading = update.reading or self.reading
        elif update.kind == "step":
            before, edit, reading = update.before, update.edit, update.reading
            self.confidences.apply(before, edit, update.num_forwards, reading)
            if reading is not None:
                request, num_top = self.plan.request, self.plan.num_top
                self.confidences.add_likeliest(before, edit, reading, request, num_top)
        self.canvas, self.weights_version = update.canvas, update.handle.num_changes
        self.num_forwards, self.num_queries = update.num_forwards, update.num_queries
        self.num_draft_forwards = update.num_draft_forwards
        self.num_draft_queries = update.num_draft_queries
        self.num_settled = update.num_settled
        self.num_cached = min(update.num_cached, self.plan.num_prompt)
        is_last = update.kind == "done"
        if is_last:
            self.output = update.output
            if self.canvas.num_open == 0:
                self.num_settled = len(self.canvas)
        text = self.stream.feed(self.canvas, self.num_settled, is_last=is_last)
        if is_last:
            self.finish_reason = self._finish_reason(update.output)
        return text

    def _finish_reason(self, output: Output | None) -> FinishReason:
        if self.stream.finish_reason is not None:
            return self.stream.finish_reason
        if output is None or not self.plan.ends.stop_ids:
            return "length"
        return output.finish_reason

    def blanks(self) -> list[str]:
        """Return the filled texts of a complete infill."""
        return [] if self.output is None else list(self.output.blanks)

    def committed_tokens(self) -> list[CommittedToken]:
        """Return the final tokens."""
        if self.is_infill:
            positions = [i for i in range(self.num_settled) if not self.canvas.fixed[i]]
        else:
            positions = list(range(self.plan.start, self.plan.start + self.stream.num_tokens))
        return [
            CommittedToken(
                int(self.canvas.tokens[position]),
                self.confidences.logprob(int(self.canvas.uid[position])),
                self.confidences.forward(int(self.canvas.uid[position])),
                self.confidences.likeliest(int(self.canvas.uid[position])),
            )
            for position in positions
        ]

    def first_frame(self, update: RequestUpdate, texts: TokenTexts) -> StreamFrame:
        """Return the canvas before the first forward, given the first update."""
        return canvas_frame(update.before, None, Confidences(), texts, forward=0, num_settled=0)

    def frame(self, update: RequestUpdate, texts: TokenTexts) -> StreamFrame:
        """Return the canvas after an update that was added."""
        change = (update.before, update.edit) if update.kind == "step" else None
        return canvas_frame(
            self.canvas,
            change,
            self.confidences,
            texts,
            forward=self.num_forwards,
            num_settled=self.num_settled,
            end_ids=self.plan.request.stop_ids,
        )

    def method(self) -> MethodFields:
        """Return the decoding method, the seed, and the model that gave the answer."""
        request = self.plan.request
        return MethodFields(
            decoder=describe_decoder(request.decoder),
            cache=describe_cache(request.cache),
            cache_exact=bool(request.cache.exact),
            seed=request.seed,
            knobs=request.method.all_knobs(),
            model=self.origins.models[self.weights_version],
            versions=self.origins.versions,
        )


BLOCK_LENGTH = 32
"""Tokens per block in latency metrics, independent of the decoder; the same as in `unmask bench serve`."""


@dataclass
class TokenTimings:
    """Arrival times of an answer's tokens and blocks, in seconds since the request arrived.

    A block arrives when its last token is final; it has `BLOCK_LENGTH` tokens, the last one possibly fewer.
    `started_s`: when its first forward began; `first_s` and `last_s`: when the first and the last tokens
    became final (None: not yet); `intervals_s`: the times between tokens that became final one after
    another, not together.
    """

    num_tokens: int = 0
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    intervals_s: list[float] = field(default_factory=list)
    blocks_s: list[float] = field(default_factory=list)

    def add(self, now_s: float, num_tokens: int, *, is_complete: bool) -> None:
        """Record that `num_tokens` of the answer are final."""
        if num_tokens > self.num_tokens:
            self.first_s = now_s if self.first_s is None else self.first_s
            if self.last_s is not None:
                self.intervals_s.append(now_s - self.last_s)
            self.num_tokens, self.last_s = num_tokens, now_s
        num_new = num_tokens // BLOCK_LENGTH - len(self.blocks_s)
        self.blocks_s.extend([now_s] * num_new)
        has_rest = num_tokens > len(self.blocks_s) * BLOCK_LENGTH
        if is_complete and self.last_s is not None and has_rest:
            self.blocks_s.append(self.last_s)

    @property
    def block_intervals_s(self) -> list[float]:
        """The time from each block to the next."""
        return [later - sooner for sooner, later in pairwise(self.blocks_s)]

    @property
    def phases_s(self) -> tuple[float, float] | None:
        """The times from the first forward to the first final tokens, and from these to the last."""
        if self.started_s is None or self.first_s is None or self.last_s is None:
            return None
        return self.first_s - self.started_s, self.last_s - self.first_s

    @property
    def per_token_s(self) -> float | None:
        """The mean time per token after the first ones; None for fewer than two tokens."""
        if self.first_s is None or self.last_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)


def submit_error(error: UnmaskError, engine: Engine) -> ApiError:
    """Return the reply to a request that the engine refuses."""
    if isinstance(error, CapacityError):
        if not engine.accepts:
            return server_stopping()
        return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, EngineError):
        return engine_dead()
    return library_error(error)
