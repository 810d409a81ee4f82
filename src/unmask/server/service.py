"""What the routes share: one model, its engine, and how a decoding request is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
from sse_starlette import EventSourceResponse
from starlette.responses import JSONResponse, Response

from unmask.engine.token_text import TokenTexts
from unmask.server.errors import ApiError, clean, engine_dead, stopping, timed_out
from unmask.server.generation import Generation
from unmask.server.metrics import Metrics
from unmask.server.protocol import Decoding, StreamOptions
from unmask.server.request_parsing import read, read_json
from unmask.server.request_planner import GenerationPlan, Planner
from unmask.server.responses import Reply, Route
from unmask.server.settings import ServerSettings
from unmask.server.sse import canvas_events, guarded, text_events

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM

log = logging.getLogger("unmask.server")
Body = TypeVar("Body", bound=Decoding)
PLANNED_AT_ONCE = 4
"""Requests whose texts are read at once; long ones must not take every core from decoding."""
Make = Callable[[Body, Mapping[str, Any]], list[GenerationPlan]]


class Service:
    """A model that is served. `is_draining`: nothing new is taken."""

    def __init__(self, llm: LLM, engine: Engine, settings: ServerSettings) -> None:
        self.llm, self.engine, self.settings = llm, engine, settings
        self.planner = Planner(llm, settings)
        self.metrics = Metrics(engine, settings.models[0])
        self.pieces = TokenTexts(llm.tokenizer)
        self.is_draining = False
        self.planning = anyio.CapacityLimiter(PLANNED_AT_ONCE)

    def check_model(self, name: str | None) -> str:
        """The name to reply with. Raises ApiError (404)."""
        if name is None:
            return self.settings.models[0]
        if name not in self.settings.models:
            raise ApiError(
                404,
                f"model {name[:100]!r} is not served here; served: {', '.join(self.settings.models)}",
                param="model",
                code="model_not_found",
            )
        return name

    @property
    def state(self) -> Literal["ok", "draining", "failed"]:
        """Whether requests are taken, or why not."""
        if self.engine.failure is not None:
            return "failed"
        return "draining" if self.is_draining else "ok"

    def check_open(self) -> None:
        """Raise ApiError (503) when nothing new is taken."""
        if self.state == "failed":
            raise engine_dead()
        if self.state == "draining":
            raise stopping()

    def timeout_s(self, asked: float | None) -> float:
        """Seconds that a request may take. Raises ApiError for more than the server allows."""
        most = self.settings.limits.request_timeout
        if asked is not None and asked > most:
            raise ApiError(
                400,
                f"timeout_s={asked:g} is more than the server's {most:g}",
                param="timeout_s",
                code="invalid_value",
            )
        return most if asked is None else asked

    async def decode(
        self,
        request: Request,
        kind: type[Body],
        neutral: dict[str, tuple[Any, ...]],
        make: Make[Body],
        route: Route,
    ) -> Response:
        """The answer to a decoding request, streamed or not."""
        raw = await read_json(request, self.settings.limits)
        arrived_s = time.monotonic()
        body, knobs = read(kind, raw, neutral)
        model = self.check_model(body.model)
        self.check_open()
        timeout_s = self.timeout_s(body.timeout_s)
        plans = await self.plan(partial(make, body, knobs), timeout_s, arrived_s)
        reply = Reply.new(
            route,
            model,
            self.pieces,
            wants_logprobs=body.wants_logprobs,
            wants_trace=body.return_trace,
        )
        call = self.submit(plans, timeout_s, reply.id, body.user, arrived_s)
        if not body.streams:
            await self.finish(request, call)
            return JSONResponse(reply.full(call.answers))
        options = body.stream_options or StreamOptions.model_validate({})
        shows_canvas = body.stream_mode == "canvas" or getattr(body, "diffusing", None)
        events = (canvas_events if shows_canvas else text_events)(
            call,
            reply,
            with_usage=options.include_usage,
            usage_always=options.continuous_usage_stats,
        )
        return self.events(call, guarded(call, events))

    async def plan(
        self, make: Callable[[], list[GenerationPlan]], timeout_s: float, arrived_s: float
    ) -> list[GenerationPlan]:
        """What `make` makes, in a thread, of which there are few. Raises ApiError.

        A request whose time is over while it waits for a thread is told so; one that has it is not
        interrupted.
        """
        with anyio.move_on_after(arrived_s + timeout_s - time.monotonic()):
            return await anyio.to_thread.run_sync(make, limiter=self.planning)
        raise timed_out(timeout_s)

    def submit(
        self,
        plans: list[GenerationPlan],
        timeout_s: float,
        call_id: str,
        user: str | None,
        arrived_s: float,
    ) -> Generation:
        """The call of these plans, queued. Raises ApiError."""
        call = Generation(self.engine, plans, self.llm.decode, timeout_s, call_id, arrived_s)
        call.user = user
        call.submit()
        return call

    def events(self, call: Generation, events: AsyncGenerator[bytes]) -> Response:
        """The events of a call that was submitted, as a response."""
        return Events(self, call, events)

    async def finish(self, request: Request, call: Generation) -> None:
        """Wait for a call's end, or for the client to leave. Raises ApiError."""
        work = asyncio.ensure_future(call.run())
        gone = asyncio.ensure_future(has_left(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ApiError(499, "the client left", code="disconnected")
            work.result()
        except ApiError as error:
            call.error = error
            raise
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            self.over(call)

    def over(self, call: Generation) -> None:
        """Free what a call holds, count it, and write its line to the log."""
        call.abort()
        reason = None if call.is_over else "abort"
        if call.error is not None:
            reason = {499: "abort", 503: "abort", 504: "timeout"}.get(call.error.status, "error")
        self.metrics.count(call, reason)
        log.info(
            "%s %s prompt=%d completion=%d forwards=%d seconds=%.3f user=%s",
            call.log_id,
            reason or "done",
            sum(answer.plan.num_prompt for answer in call.answers),
            sum(answer.num_tokens for answer in call.answers),
            sum(answer.num_forwards for answer in call.answers),
            call.seconds,
            clean(call.user or "-", 64),
        )


class Events(EventSourceResponse):
    """A stream that ends its call however it ends: sent, failed, or left by its client.

    Pings are off: SGLang's client takes every line for data.
    """

    def __init__(self, service: Service, call: Generation, events: Any) -> None:
        super().__init__(
            events, ping=0, sep="\n", send_timeout=service.settings.limits.send_timeout_s
        )
        self._service, self._call = service, call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.over(self._call)


async def has_left(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
