"""The ASGI app: routes, error handlers and the playground page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from unmask.errors import ModelError
from unmask.pictures.page import PLAYER
from unmask.server.auth import DOCS_PATH, AccessMiddleware
from unmask.server.capabilities import Capabilities, capabilities
from unmask.server.cors import CorsMiddleware
from unmask.server.decision_route import add_decision_routes
from unmask.server.errors import ApiError, log, unexpected
from unmask.server.foreign_fields import only
from unmask.server.openapi import ERRORS, Api, error_responses
from unmask.server.picture_route import add_picture_route
from unmask.server.protocol import ChatRequest, CompletionRequest, FimRequest, InfillRequest
from unmask.server.reply_models import (
    ChatChunk,
    ChatCompletion,
    FimCompletion,
    Health,
    InfillCompletion,
    ModelCard,
    ModelList,
    ReplyResponse,
    ServerState,
    TextChunk,
    TextCompletion,
    Version,
)
from unmask.server.request_log import note_error, note_reason
from unmask.server.response_route import add_response_route
from unmask.server.service import Service
from unmask.server.settings import STATIC, ServerSettings
from unmask.server.sglang import add_sglang_routes
from unmask.server.tokenizing import add_tokenizing_routes
from unmask.server.tracing import TraceMiddleware, make_provider
from unmask.server.weights_route import add_weights_route
from unmask.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM


def create_app(
    llm: LLM, engine: Engine, settings: ServerSettings, tracing: TracerProvider | None = None
) -> FastAPI:
    """Return an app that serves a model through an engine, which it starts and stops.

    `app.state.service` is its `Service`. `tracing`: receives a span per request, and is shut down at the
    end (None: one of `settings.otlp_endpoint`, or none). Raises ModelError for a model without a tokenizer.
    """
    if llm.tokenizer is None:
        raise ModelError(f"model {llm.name!r} has no tokenizer, which a server needs; add one")
    service = Service(llm, engine, settings)

    if tracing is None and settings.otlp_endpoint is not None:
        tracing = make_provider(settings.otlp_endpoint, __version__)
    service.is_traced = tracing is not None
    problem = llm.prompts.chat.problem()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if problem is not None:
            log.warning("the chat routes cannot answer a user: %s; other routes work", problem)
        engine.start()
        yield
        service.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)

    app = Api(
        title="unmask",
        version=__version__,
        summary="Masked diffusion language models over HTTP.",
        docs_url=None,  # both pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would contain the client's Host header
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(AccessMiddleware, settings=settings, count=service.metrics.count_http)
    if settings.origins:
        app.add_middleware(
            CorsMiddleware, origins=settings.origins
        )  # outside: no key in a preflight
    if tracing is not None:
        app.add_middleware(TraceMiddleware, provider=tracing)
    add_error_handlers(app)
    add_decoding_routes(app, service)
    add_response_route(app, service)
    add_decision_routes(app, service)
    add_sglang_routes(app, service)
    add_tokenizing_routes(app, service)
    add_weights_route(app, service)
    add_info_routes(app, service)
    add_state_routes(app, service)
    add_page(app, settings.static)
    add_picture_route(app, service)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the OpenAI API's envelope, and unexpected ones without details."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError), "registered for it"
        note_error(request.scope, error)
        return error.response()

    async def router_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for it"
        path, status = request.url.path[:100], error.status_code
        headers = dict(error.headers or {})
        refusal = ApiError(status, str(error.detail))
        if status == 404:
            refusal.message = f"no route {request.method} {path}; see /openapi.json"
        if status == 405:
            headers["Allow"] = allowed_methods(request)
            refusal.message = f"{path} does not take {request.method}; it takes {headers['Allow']}"
        note_error(request.scope, refusal)
        return refusal.response(headers)

    async def unexpected_error(request: Request, error: Exception) -> Response:
        note_error(request.scope, unexpected())
        return unexpected().response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, router_error)
    app.add_exception_handler(Exception, unexpected_error)


def allowed_methods(request: Request) -> str:
    """Return the methods of all routes of a path; the router's own error has those of the first route.

    The page's files are a mount without methods, and read-only.
    """
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL:
            methods |= route.methods
    return ", ".join(sorted(methods or {"GET", "HEAD"}))


def add_decoding_routes(app: Api, service: Service) -> None:
    """Add the routes that decode."""
    planner = service.planner
    chat_fields, text_fields = ({"add_special_tokens": only(value)} for value in (False, True))

    async def chat(request: Request) -> Response:
        return await service.decode(request, ChatRequest, chat_fields, planner.chat, "chat")

    async def completions(request: Request) -> Response:
        return await service.decode(
            request, CompletionRequest, text_fields, planner.completion, "completion"
        )

    async def fim(request: Request) -> Response:
        return await service.decode(request, FimRequest, text_fields, planner.completion, "fim")

    async def infill(request: Request) -> Response:
        return await service.decode(request, InfillRequest, {}, planner.infill, "infill")

    app.add_decoding_route(
        "/v1/chat/completions",
        chat,
        summary="Generate the next turn of a conversation.",
        body=ChatRequest,
        reply=ChatCompletion,
        event=ChatChunk,
    )
    app.add_decoding_route(
        "/v1/completions",
        completions,
        summary="Continue texts, or fill in their middle.",
        body=CompletionRequest,
        reply=TextCompletion,
        event=TextChunk,
    )
    app.add_decoding_route(
        "/v1/fim/completions",
        fim,
        summary="Fill in the middle of a text (Mistral's and Mercury's form).",
        body=FimRequest,
        reply=FimCompletion,
        event=TextChunk,
    )
    app.add_decoding_route(
        "/v1/infill",
        infill,
        summary="Fill the blanks of a text.",
        body=InfillRequest,
        reply=InfillCompletion,
        event=TextChunk,
    )


def add_info_routes(app: FastAPI, service: Service) -> None:
    """Add the routes for models and capabilities."""
    settings, started_s = service.settings, int(time.time())

    bank = service.llm.adapters
    folders = {} if bank is None else bank.folders

    def card(name: str) -> ModelCard:
        root = str(folders.get(name, service.llm.name))
        own = ModelCard(
            id=name,
            object="model",
            created=started_s,
            owned_by="unmask",
            root=root,
            max_model_len=service.planner.max_length,
        )
        return own.model_copy(update={"parent": settings.models[0]}) if name in folders else own

    @app.get(
        "/v1/models",
        summary="List the names of the served model and of its adapters.",
        response_model=ModelList,
    )
    async def models() -> Response:
        return ReplyResponse(ModelList(object="list", data=[card(n) for n in service.models]))

    @app.get(
        "/v1/models/{name:path}",
        summary="Return one of the names.",
        response_model=ModelCard,
        responses=error_responses({404: ERRORS[404]}),
    )
    async def model(name: str) -> Response:
        return ReplyResponse(card(service.check_model(name)))

    schema = capabilities(
        service.llm,
        settings.defaults,
        settings.models[0],
        service.planner.max_length,
    )

    @app.get(
        "/v1/schema",
        summary="List decoders, caches and their knobs, and facts of the model.",
        response_model=Capabilities,
    )
    async def knobs() -> Response:
        return ReplyResponse(schema)


def add_state_routes(app: FastAPI, service: Service) -> None:
    """Add the routes for health and metrics."""
    _add_status(
        app,
        "health",
        "Return 200 while requests are accepted, and engine and planning move; else 503. Needs no key.",
        "draining, stalled or failed",
        service,
        lambda: service.state,
    )
    _add_status(
        app,
        "ready",
        "Return 200 if a request would be decoded now, else 503. Needs no key.",
        "loading, draining, stalled or failed",
        service,
        lambda: service.readiness,
    )

    @app.get("/version", summary="Return the server's version.", response_model=Version)
    async def version() -> Response:
        return ReplyResponse(Version(version=__version__))

    @app.get(
        "/metrics",
        summary="Return metrics in Prometheus' text format.",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_status(
    app: FastAPI,
    name: str,
    summary: str,
    reason: str,
    service: Service,
    state: Callable[[], ServerState],
) -> None:
    """Add GET and HEAD of a status: 200 while `state` is `ok`; `reason` tells of 503."""

    @app.get(
        f"/{name}",
        name=name,
        summary=summary,
        response_model=Health,
        responses={503: {"description": reason, "model": Health}},
    )
    async def status(request: Request) -> Response:
        now, stall = state(), service.watchdog.stall()
        if now != "ok":
            note_reason(request.scope, now)
        health = (
            Health(status=now, reason=stall) if now == "stalled" and stall else Health(status=now)
        )
        return ReplyResponse(health, 200 if now == "ok" else 503)

    @app.head(
        f"/{name}",
        name=f"{name}_status",
        summary="Return the status alone, for load balancers.",
        responses={503: {"description": reason}},
    )
    async def status_alone() -> Response:
        return Response(status_code=200 if state() == "ok" else 503)


def add_page(app: FastAPI, static: Path) -> None:
    """Add the playground page, if its files are there."""
    index = static / "index.html"
    if not index.is_file():
        return

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(index)

    @app.get("/static/player.html", include_in_schema=False)
    async def player() -> FileResponse:
        """Return the page that plays a decode, as text: the playground fills it in for a download."""
        return FileResponse(PLAYER, media_type="text/plain")

    @app.get(DOCS_PATH, include_in_schema=False)
    async def docs() -> FileResponse:
        """Return the page that shows `/openapi.json`; all its files are this server's."""
        return FileResponse(STATIC / "docs.html")

    app.mount("/static", StaticFiles(directory=static), name="static")
