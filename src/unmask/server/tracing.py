"""OpenTelemetry: a span per request, with the attributes of generative AI (`serve --otlp-traces-endpoint`).

Source: OpenTelemetry's semantic conventions for HTTP servers and for generative AI, and W3C's Trace
Context, whose `traceparent` makes a span the child of the client's. Prompts and answers are not recorded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from unmask.caches.registry import describe as describe_cache
from unmask.decoders.registry import describe as describe_decoder
from unmask.errors import ConfigError, DependencyError, cut_text
from unmask.server.request_log import QUIET_PATHS, record_of

if TYPE_CHECKING:
    from opentelemetry.context.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from unmask.server.generation import Generation

Attribute = str | int | float | list[str]
CONTEXT_HEADERS = (b"traceparent", b"tracestate")
PROVIDER = "unmask"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/responses": "chat"}
TEXT_OPERATION = "text_completion"
EXPORT_TIMEOUT_S = 5.0
"""Time for one export, and about that of the server's end when the collector is away."""


def check_endpoint(endpoint: str | None) -> str | None:
    """Return the address of a collector unchanged. Raises ConfigError."""
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        _ = parts.port
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(
            f"--otlp-traces-endpoint {cut_text(endpoint)!r} is no address of OTLP over HTTP; give one "
            f"such as http://localhost:4318/v1/traces"
        )
    _need_extra()
    return endpoint


def _need_extra() -> None:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"--otlp-traces-endpoint needs {error.name or error}: pip install 'unmask[otel]'"
        ) from None


def make_provider(endpoint: str, version: str) -> TracerProvider:
    """Return a provider that sends spans to a collector from a thread. Raises DependencyError."""
    _need_extra()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": PROVIDER, "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class TraceMiddleware:
    """ASGI middleware that makes a span of every request but those for probes, metrics and files."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app, self.tracer = app, provider.get_tracer(PROVIDER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and end its span when the reply is complete or the client has left."""
        record = record_of(scope) if scope["type"] == "http" else None
        if record is None or scope["path"].startswith(QUIET_PATHS):
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in CONTEXT_HEADERS
        }
        # of the request alone, never of what else runs in this thread
        parent = TraceContextTextMapPropagator().extract(carrier, _no_context())
        began_ns, status, failure = time.time_ns(), 0, ""

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_see)
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            route = getattr(scope.get("route"), "path", None)
            attributes: dict[str, Attribute] = {
                "http.request.method": record.method,
                "url.path": record.path,
                "url.scheme": str(scope.get("scheme", "http")),
                "unmask.request_id": record.request_id,
                **({"http.route": route} if route else {}),
                **({"http.response.status_code": status} if status else {}),
                **record.attributes,
            }
            failure = failure or (record.reason or str(status) if status >= 400 else "")
            failure = failure or str(attributes.get("error.type", ""))
            span = self.tracer.start_span(
                _name(attributes), parent, SpanKind.SERVER, attributes, start_time=began_ns
            )
            if failure:
                span.set_attribute("error.type", failure)
            if failure and not 400 <= status < 500:
                span.set_status(StatusCode.ERROR)
            span.end()


def _no_context() -> Context:
    from opentelemetry.context.context import Context

    return Context()


def _name(attributes: dict[str, Attribute]) -> str:
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return f"{operation} {attributes['gen_ai.request.model']}"
    return f"{attributes['http.request.method']} {attributes.get('http.route', '')}".strip()


def attributes_of(
    generation: Generation, path: str, model: str, reason: str | None
) -> dict[str, Attribute]:
    """Return the attributes of a finished generation; `reason` of one that ended early."""
    answers, request = generation.answers, generation.answers[0].plan.request
    params = request.sampling_params
    found: dict[str, Attribute | None] = {
        "gen_ai.operation.name": OPERATIONS.get(path, TEXT_OPERATION),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": generation.log_id,
        "gen_ai.request.choice.count": len(answers),
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.max_tokens": request.canvas.num_open,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.response.finish_reasons": [answer.finish_reason or "error" for answer in answers],
        "gen_ai.usage.input_tokens": sum(answer.plan.num_prompt for answer in answers),
        "gen_ai.usage.output_tokens": sum(answer.num_tokens for answer in answers),
        "unmask.decoder": describe_decoder(request.decoder),
        "unmask.cache": describe_cache(request.cache),
        "unmask.num_forwards": sum(answer.num_forwards for answer in answers),
        "unmask.queue_s": generation.queue_s,
        "unmask.first_text_s": generation.first_text_s,
        "error.type": reason,
    }
    return {name: value for name, value in found.items() if value is not None}
