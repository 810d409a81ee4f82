"""The routes, as an ASGI app."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from unmask.errors import ModelError
from unmask.method import CACHE_PREFIX
from unmask.server.auth import Guard
from unmask.server.capabilities import schema
from unmask.server.errors import ApiError
from unmask.server.openapi import describe_bodies, documented
from unmask.server.protocol import ChatRequest, CompletionRequest, InfillRequest
from unmask.server.request_parsing import CHAT_DEFAULTS, COMMON_DEFAULTS, COMPLETION_DEFAULTS
from unmask.server.service import Service
from unmask.server.settings import ServerSettings
from unmask.server.sglang import GenerateRequest, add_sglang_routes
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.engine.engine import Engine
    from unmask.engine.llm import LLM

log = logging.getLogger("unmask.server")
CHAT_NEUTRAL = {**COMMON_DEFAULTS, **CHAT_DEFAULTS}
COMPLETION_NEUTRAL = {**COMMON_DEFAULTS, **COMPLETION_DEFAULTS}


def create_app(llm: LLM, engine: Engine, settings: ServerSettings) -> FastAPI:
    """An app that serves a model through an engine, which it starts and stops.

    Raises ModelError for a model without a tokenizer. `app.state.service` is the `Service`.
    """
    if llm.tokenizer is None:
        raise ModelError(f"model {llm.name!r} has no tokenizer, which a server needs; add one")
    service = Service(llm, engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    app = FastAPI(
        title="unmask",
        version=__version__,
        summary="Masked diffusion language models over HTTP.",
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the client named
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Guard, settings=settings, count=service.metrics.count_http)
    add_errors(app)
    add_decoding(app, service)
    add_sglang_routes(app, service)
    add_facts(app, service)
    add_page(app, settings.static)
    describe_bodies(app, (ChatRequest, CompletionRequest, InfillRequest, GenerateRequest))
    return app


def add_errors(app: FastAPI) -> None:
    """Every error in OpenAI's envelope; what was not foreseen says no more than that."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError), "registered for it"
        return JSONResponse(error.body(), error.status, error.headers())

    async def of_router(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for it"
        path = request.url.path[:100]
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = methods_of(request)
        said = {
            404: f"no route {request.method} {path}; see /openapi.json",
            405: f"{path} does not take {request.method}; it takes {headers.get('Allow')}",
        }
        made = ApiError(error.status_code, said.get(error.status_code, str(error.detail)))
        return JSONResponse(made.body(), error.status_code, headers)

    async def unforeseen(request: Request, error: Exception) -> Response:
        made = ApiError(500, "the server failed; the log has the reason", code="internal_error")
        return JSONResponse(made.body(), 500)

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(HTTPException, of_router)
    app.add_exception_handler(Exception, unforeseen)


def methods_of(request: Request) -> str:
    """The methods that a path takes, of all its routes: the router names those of the first.

    The page's files are under no route of their own, and are only read.
    """
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL:
            found |= route.methods
    return ", ".join(sorted(found or {"GET", "HEAD"}))


def add_decoding(app: FastAPI, service: Service) -> None:
    """The routes that decode."""
    planner = service.planner

    @app.post("/v1/chat/completions", **documented(ChatRequest, "The next turn of a conversation."))
    async def chat(request: Request) -> Response:
        return await service.decode(request, ChatRequest, CHAT_NEUTRAL, planner.chat, "chat")

    @app.post(
        "/v1/completions",
        **documented(CompletionRequest, "Texts that go on, or whose middle is filled."),
    )
    async def completions(request: Request) -> Response:
        return await service.decode(
            request, CompletionRequest, COMPLETION_NEUTRAL, planner.completion, "completion"
        )

    @app.post("/v1/infill", **documented(InfillRequest, "A text whose blanks are filled."))
    async def infill(request: Request) -> Response:
        return await service.decode(
            request, InfillRequest, COMMON_DEFAULTS, planner.infill, "infill"
        )


def add_facts(app: FastAPI, service: Service) -> None:
    """The routes that tell: models, schema, health, metrics."""
    settings, started = service.settings, int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "unmask",
            "root": service.llm.name,
            "max_model_len": service.planner.max_length,
        }

    @app.get("/v1/models", summary="The names under which the model is served.")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card(name) for name in settings.models]})

    @app.get("/v1/models/{name:path}", summary="One of the names.")
    async def model(name: str) -> Response:
        return JSONResponse(card(service.check_model(name)))

    defaults = settings.defaults
    facts = schema(
        service.llm,
        {
            "decoder": defaults.decoder_name,
            "knobs": {k: v for k, v in defaults.given.items() if not k.startswith(CACHE_PREFIX)},
            "cache": defaults.cache_name,
            "cache_args": {
                k.removeprefix(CACHE_PREFIX): v
                for k, v in defaults.given.items()
                if k.startswith(CACHE_PREFIX)
            },
        },
        settings.models[0],
        service.planner.max_length,
    )

    @app.get("/v1/schema", summary="Decoders, caches and their knobs, and facts of the model.")
    async def knobs() -> Response:
        return JSONResponse(facts)

    @app.get("/health", summary="200 while requests are taken, else 503. Needs no key.")
    async def health() -> Response:
        state = service.state
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.head("/health", summary="The status alone, as load balancers ask for it.")
    async def health_status() -> Response:
        return Response(status_code=200 if service.state == "ok" else 503)

    @app.get("/metrics", summary="Prometheus' text format.", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def add_page(app: FastAPI, static: Path) -> None:
    """The playground, where there is one."""
    index = static / "index.html"
    if not index.is_file():
        return

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(index)

    app.mount("/static", StaticFiles(directory=static), name="static")
