"""State that the routes share: a model, its engine, and the life of a decoding request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pydantic import JsonValue
from sse_starlette import EventSourceResponse

from unmask.engine.origin import versions
from unmask.engine.token_text import TokenTexts
from unmask.errors import UnmaskError
from unmask.server.errors import (
    ApiError,
    disconnected,
    engine_dead,
    log,
    sanitize,
    server_stopping,
)
from unmask.server.foreign_fields import Harmless
from unmask.server.generation import Generation, Origins, submit_error
from unmask.server.metrics import Metrics
from unmask.server.planning import Planning
from unmask.server.protocol import ChatRequest, DecodingRequest, StreamOptions
from unmask.server.reply_models import ReplyResponse, ServerState
from unmask.server.request_log import record_of
from unmask.server.request_parsing import parse_body, read_json
from unmask.server.request_planner import GenerationPlan, Planner
from unmask.server.responses import ReplyBuilder, Route
from unmask.server.settings import ServerSettings, check_names
from unmask.server.sse import canvas_events, error_as_event, text_events
from unmask.server.tool_fields import ToolParser
from unmask.server.tracing import attributes_of
from unmask.server.watchdog import Watchdog

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM

Body = TypeVar("Body", bound=DecodingRequest)
STOP_TIMEOUT_S = 10.0
"""Time for the engine to end its forward when the server stops."""
MakePlans = Callable[[Body, Mapping[str, JsonValue]], list[GenerationPlan]]


class Service:
    """A model that is served. While `is_draining`, new requests are refused."""

    def __init__(self, llm: LLM, engine: Engine, settings: ServerSettings) -> None:
        self.llm, self.engine, self.settings = llm, engine, settings
        self.models = check_names(settings.models, adapter_names(llm))
        self.planner = Planner(llm, settings, engine.config.max_queue)
        self.metrics = Metrics(engine, settings.models[0])
        self.texts = TokenTexts(llm.tokenizer)
        self.origins = Origins([llm.origin()], versions())
        self.is_draining, self.has_hung, self.is_traced = False, False, False
        self.planning = Planning()
        self.watchdog = Watchdog(engine, self.planning, settings.limits.watchdog_timeout)
        self.metrics.watch(self.planning, llm.prompts.pool)

    def check_model(self, name: str | None) -> str:
        """Return the name for the reply, of the model or an adapter. Raises ApiError (404)."""
        if name is None:
            return self.settings.models[0]
        if name not in self.models:
            raise ApiError(
                404,
                f"model {name[:100]!r} is not served here; served: {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return name

    @property
    def state(self) -> ServerState:
        """The state that `/health` reports."""
        if self.engine.failure is not None:
            return "failed"
        if self.is_draining:
            return "draining"
        return "ok" if self.watchdog.stall() is None else "stalled"

    @property
    def readiness(self) -> ServerState:
        """The state that `/ready` reports: that of `/health`, or "loading" until the engine has started."""
        state = self.state
        return "loading" if state == "ok" and not self.engine.accepts else state

    @property
    def num_inside(self) -> int:
        """Requests that are planned, wait for it, are queued or decoded."""
        stats = self.engine.stats
        return stats.queued + stats.running + self.planning.num_running + self.planning.num_waiting

    def stop(self) -> None:
        """End planning and the engine; a forward that does not end is left behind (`has_hung`)."""
        if self.has_hung:
            return
        self.llm.prompts.pool.stop()
        self.has_hung = not self.engine.stop(STOP_TIMEOUT_S)
        if self.has_hung:
            log.critical("the engine has not ended its forward within %g s", STOP_TIMEOUT_S)

    def check_open(self) -> None:
        """Raise ApiError if new requests are refused: 503, or 429 while the queue is full.

        Asked before a request is planned, which takes time.
        """
        if self.state == "failed":
            raise engine_dead()
        if self.state == "draining":
            raise server_stopping()
        try:
            self.engine.check_accepts()
        except UnmaskError as error:
            raise submit_error(error, self.engine) from None

    def timeout_s(self, requested: float | None) -> float:
        """Return the timeout of a request. Raises ApiError if it is longer than the server's."""
        maximum = self.settings.limits.request_timeout
        if requested is not None and requested > maximum:
            raise ApiError(
                400,
                f"timeout_s={requested:g} is more than the server's {maximum:g}",
                param="timeout_s",
                code="invalid_value",
            )
        return maximum if requested is None else requested

    async def decode(
        self,
        request: Request,
        model: type[Body],
        own: Mapping[str, Harmless],
        make_plans: MakePlans[Body],
        route: Route,
    ) -> Response:
        """Parse, plan and decode a request; return its reply or its stream. Raises ApiError."""
        raw = await read_json(request, self.settings.limits)
        arrived_s = time.monotonic()
        body, knobs = parse_body(model, raw, own)
        name = self.check_model(body.model)
        self.check_open()
        timeout_s = self.timeout_s(body.timeout_s)
        plans = await self.plan(partial(make_plans, body, knobs), timeout_s, arrived_s)
        reply = ReplyBuilder(
            route,
            name,
            self.texts,
            wants_logprobs=body.wants_logprobs,
            wants_trace=body.return_trace,
            wants_trace_header=body.trace_header,
            wants_step_map=body.return_step_map,
            wants_diffusion_meta=isinstance(body, ChatRequest) and bool(body.diffusing),
            tools=tool_parser(body),
        )
        generation = self.submit(request, plans, timeout_s, reply.id, body.user, arrived_s)
        if not body.stream:
            await self.wait(request, generation)
            return ReplyResponse(reply.reply(generation.answers))
        options = body.stream_options or StreamOptions.model_validate({})
        events = (canvas_events if body.wants_canvas else text_events)(
            generation,
            reply,
            with_usage=options.include_usage,
            usage_always=options.continuous_usage_stats,
        )
        return GenerationStream(self, generation, events)

    async def plan(
        self, make_plans: Callable[[], list[GenerationPlan]], timeout_s: float, arrived_s: float
    ) -> list[GenerationPlan]:
        """Return the result of `make_plans`, called in a thread within the timeout. Raises ApiError."""
        return await self.planning.run(make_plans, timeout_s, arrived_s)

    def submit(
        self,
        request: Request,
        plans: list[GenerationPlan],
        timeout_s: float,
        request_id: str,
        user: str | None,
        arrived_s: float,
        *,
        in_waves: bool = False,
    ) -> Generation:
        """Submit plans to the engine and return their generation. Raises ApiError.

        `in_waves`: only as many at once as run together, however many there are.
        """
        generation = Generation(
            self.engine,
            plans,
            self.llm.decode,
            timeout_s,
            request_id,
            arrived_s,
            self.origins,
            self.engine.config.window if in_waves else None,
        )
        generation.user, generation.record = user, record_of(request.scope)
        generation.submit()
        return generation

    async def wait(self, request: Request, generation: Generation) -> None:
        """Wait until a generation ends or the client disconnects. Raises ApiError."""
        work = asyncio.ensure_future(generation.run())
        disconnect = asyncio.ensure_future(wait_for_disconnect(request))
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise disconnected()
            work.result()
        except ApiError as error:
            generation.error = error
            raise
        finally:
            for task in (work, disconnect):
                task.cancel()
            await asyncio.gather(work, disconnect, return_exceptions=True)
            self.close(generation)

    def close(self, generation: Generation) -> None:
        """Abort what is incomplete, update the metrics, and note the outcome for the log."""
        generation.abort()
        reason = None if generation.is_complete else "abort"
        if generation.error is not None:
            status = generation.error.status
            reason = {499: "abort", 503: "abort", 504: "timeout"}.get(status, "error")
        self.metrics.count(generation, reason)
        if generation.record is None:
            return
        if generation.error is not None:
            generation.record.note(generation.error)
        if self.is_traced:
            generation.record.attributes = attributes_of(
                generation, generation.record.path, self.settings.models[0], reason
            )
        generation.record.details = {
            "id": generation.log_id,
            "end": reason or "done",
            "prompt": sum(answer.plan.num_prompt for answer in generation.answers),
            "completion": sum(answer.num_tokens for answer in generation.answers),
            "forwards": sum(answer.num_forwards for answer in generation.answers),
            "user": sanitize(generation.user or "-", 64),
        }


class GenerationStream(EventSourceResponse):
    """A stream that closes its generation when it was sent, has failed, or lost its client.

    Pings are off, since SGLang's client takes every line for data.
    """

    def __init__(
        self, service: Service, generation: Generation, events: AsyncGenerator[bytes]
    ) -> None:
        super().__init__(
            error_as_event(generation, events),
            ping=0,
            sep="\n",
            send_timeout=service.settings.limits.send_timeout_s,
        )
        self._service, self._generation = service, generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.close(self._generation)


def adapter_names(llm: LLM) -> tuple[str, ...]:
    """Return the names of a model's adapters."""
    return () if llm.adapters is None else llm.adapters.names


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def tool_parser(body: DecodingRequest) -> ToolParser | None:
    """Return the parser of the calls in the answers to a body that offers tools, else None."""
    if not isinstance(body, ChatRequest) or not body.offered_tools:
        return None
    tools = body.forced_tools or body.offered_tools
    names = frozenset(tool.function.name for tool in tools)
    return ToolParser(names, body.parallel_tool_calls is not False)
