"""Traces of OpenTelemetry: one span per request, a child of the client's, off unless asked for."""

from __future__ import annotations

import sys

import pytest
from fastapi.testclient import TestClient
from served import QUESTION

from unmask.engine.engine import Engine
from unmask.errors import ConfigError, DependencyError
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings
from unmask.server.tracing import check_endpoint

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT_URL, TEXT_URL = "/v1/chat/completions", "/v1/completions"
CHAT = {
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 48,
    "decoder": "threshold",
    "threshold": 0.6,
    "temperature": 0.1,
    "seed": 3,
}


@pytest.fixture(scope="module")
def traced(demo_llm):
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",)), provider)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, exporter


@pytest.fixture
def span_of(traced):
    """`span_of(path, body, **headers)`: the reply, and the only span that the request made."""
    client, exporter = traced

    def send(path, body=None, **headers):
        exporter.clear()
        method = "GET" if body is None else "POST"
        reply = client.request(method, path, json=body, headers=headers)
        (span,) = exporter.get_finished_spans()
        return reply, span

    return send


def test_a_chat_has_the_attributes_of_generative_ai(span_of):
    reply, span = span_of(CHAT_URL, CHAT)
    body = reply.json()
    assert (span.name, span.kind) == ("chat demo", SpanKind.SERVER)
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "unmask",
        "gen_ai.request.model": "demo",
        "gen_ai.response.model": "demo",
        "gen_ai.response.id": body["id"],
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.seed": 3,
        "gen_ai.request.max_tokens": 48,
        "gen_ai.request.temperature": 0.1,
        "gen_ai.response.finish_reasons": (body["choices"][0]["finish_reason"],),
        "gen_ai.usage.input_tokens": body["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": body["usage"]["completion_tokens"],
        "unmask.decoder": body["unmask"]["decoder"],
        "unmask.cache": "none",
        "unmask.num_forwards": body["usage"]["num_forwards"],
        "unmask.request_id": reply.headers["x-request-id"],
        "http.request.method": "POST",
        "http.route": CHAT_URL,
        "url.path": CHAT_URL,
        "url.scheme": "http",
        "http.response.status_code": 200,
    }
    found = dict(span.attributes)
    assert 0 <= found.pop("unmask.queue_s") <= found.pop("unmask.first_text_s") < 60
    assert found == expected
    assert "Tom" not in str(found), "no prompt"
    assert span.end_time > span.start_time


def test_a_stream_is_one_span_until_its_end(span_of):
    _, span = span_of(TEXT_URL, {"prompt": "A dog", "max_tokens": 8, "n": 2, "stream": True})
    assert span.name == "text_completion demo"
    assert span.attributes["gen_ai.request.choice.count"] == 2
    assert len(span.attributes["gen_ai.response.finish_reasons"]) == 2
    assert span.attributes["gen_ai.usage.output_tokens"] > 0


def test_a_traceparent_makes_the_span_a_child(span_of):
    _, span = span_of(
        TEXT_URL, {"prompt": "A", "max_tokens": 4}, traceparent=f"00-{TRACE}-{PARENT}-01"
    )
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize(
    "value", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"]
)
def test_a_traceparent_that_is_none_begins_a_trace(span_of, value):
    reply, span = span_of("/v1/models", traceparent=value)
    assert reply.status_code == 200
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE
    assert span.name == "GET /v1/models"


def test_a_client_that_does_not_sample_gets_no_span(traced):
    client, exporter = traced
    exporter.clear()
    client.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not exporter.get_finished_spans()


def test_a_refusal_is_a_span_with_its_reason(span_of):
    reply, span = span_of(TEXT_URL, {"prompt": "A", "max_tokens": 0})
    assert reply.status_code == 400
    assert span.attributes["http.response.status_code"] == 400
    assert span.attributes["error.type"] == "invalid_value (max_tokens)"
    assert "gen_ai.operation.name" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET, "a client's mistake"


def test_probes_and_files_make_no_spans(traced):
    client, exporter = traced
    exporter.clear()
    for path in ("/health", "/ready", "/metrics", "/static/app.js"):
        assert client.get(path).status_code == 200
    assert not exporter.get_finished_spans()


def test_it_is_off_unless_asked_for(demo_llm):
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",)))
    assert not app.state.service.is_traced
    assert "TraceMiddleware" not in [each.cls.__name__ for each in app.user_middleware]
    assert check_endpoint(None) is None


@pytest.mark.parametrize(
    "text", ["localhost:4318", "grpc://a:4317", "http://", "http://a:port/x", ""]
)
def test_an_address_of_something_else_is_refused(text):
    with pytest.raises(ConfigError, match="no address of OTLP over HTTP"):
        check_endpoint(text)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(DependencyError, match=r"pip install 'unmask\[otel\]'"):
        check_endpoint("http://localhost:4318/v1/traces")
