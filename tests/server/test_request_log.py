"""Every reply has an id, and every request a log line with the reason of its refusal."""

from __future__ import annotations

import contextlib
import logging
import re

import pytest
from fastapi.testclient import TestClient
from served import CHAT, gated_client, serving, wait_for

from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.logs import FIELDS
from unmask.server.request_log import request_id_of
from unmask.server.settings import Access, ServerSettings

CHAT_URL = "/v1/chat/completions"
FRESH = re.compile(r"req_[0-9a-f]{24}")
SECRET = "payload-7f3a"
REPLIES = [
    ("GET", "/health", None, 200),
    ("HEAD", "/health", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/no", None, 404),
    ("GET", "/", None, 200),
    ("GET", "/static/app.js", None, 200),
    ("GET", "/static/none", None, 404),
    ("GET", "/nowhere", None, 404),
    ("DELETE", "/health", None, 405),
    ("POST", CHAT_URL, {**CHAT, "max_tokens": 8}, 200),
    ("POST", CHAT_URL, {**CHAT, "max_tokens": 8, "stream": True}, 200),
    ("POST", CHAT_URL, {}, 400),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 8, "stream": True}, 200),
    ("POST", "/v1/responses", {"input": "a", "max_output_tokens": 8}, 200),
    ("POST", "/v1/infill", {"text": 3}, 400),
    ("POST", "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 8}}, 200),
    ("POST", "/tokenize", {"prompt": "a"}, 200),
]


def lines(caplog):
    return [one for one in caplog.records if hasattr(one, FIELDS)]


@pytest.mark.parametrize(("method", "path", "body", "status"), REPLIES)
def test_every_reply_returns_the_id_and_the_log_has_it(client, caplog, method, path, body, status):
    caplog.set_level(logging.DEBUG, "unmask.server")
    headers = {"X-Request-Id": "trace:1-a.b_c"}
    reply = client.request(method, path, json=body, headers=headers)
    assert reply.status_code == status
    assert reply.headers.get_list("x-request-id") == ["trace:1-a.b_c"]
    (line,) = lines(caplog)
    fields = getattr(line, FIELDS)
    assert (fields["request_id"], fields["method"]) == ("trace:1-a.b_c", method)
    assert (fields["path"], fields["status"]) == (path, status)
    assert isinstance(fields["ms"], int)
    assert (fields["reason"] is None) == (status == 200)
    for part in ("trace:1-a.b_c", method, path, str(status)):
        assert part in line.getMessage()


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [b""],
        [b"a", b"b"],
        [b"a b"],
        [b"a\nb"],
        [b"a\x1b[31m"],
        [b"\xc3\xa9"],
        [b'"a"'],
        [b"<a>"],
        [b"a" * 129],
        [b"a" * 5000],
    ],
)
def test_an_odd_id_is_replaced(sent):
    assert FRESH.fullmatch(request_id_of(sent))
    assert request_id_of(sent) != request_id_of(sent)


@pytest.mark.parametrize(
    "sent", [b"a", b"a" * 128, b"Root=1-67891233-abcdef012345678912345678", b"0/1+2@3~4"]
)
def test_an_id_of_plain_characters_is_taken(sent):
    assert request_id_of([sent]) == sent.decode()


def test_an_odd_id_gets_a_new_one_on_a_reply(client):
    for sent in ("a b", "a" * 300):
        reply = client.get("/v1/models", headers={"X-Request-Id": sent})
        assert FRESH.fullmatch(reply.headers["x-request-id"])
    assert FRESH.fullmatch(client.get("/nowhere").headers["x-request-id"])


REFUSED = [
    ({**CHAT, "max_tokens": SECRET}, 400, "invalid_value (max_tokens)"),
    ({**CHAT, SECRET: 1}, 400, "unknown_parameter"),
    ({**CHAT, "decoder": SECRET}, 400, "invalid_value (decoder)"),
    ({**CHAT, "model": SECRET}, 404, "model_not_found (model)"),
    ({**CHAT, "functions": [{"type": SECRET}]}, 400, "unsupported_parameter (functions)"),
    ({**CHAT, "messages": [{"role": SECRET}]}, 400, "invalid_value (messages)"),
    ({**CHAT, "threshold": SECRET}, 400, "invalid_value (threshold)"),
    ({**CHAT, "decoder_args": {SECRET: 1}}, 400, "invalid_value (decoder_args)"),
    ({**CHAT, "cache": "dkv", "cache_args": {SECRET: 1}}, 400, "invalid_value (cache_args)"),
    (SECRET, 400, "invalid_json"),
]


@pytest.mark.parametrize(("body", "status", "reason"), REFUSED)
def test_a_refusal_is_logged_with_its_reason_and_nothing_that_was_sent(
    client, caplog, body, status, reason
):
    caplog.set_level(logging.DEBUG)
    reply = client.post(f"{CHAT_URL}?key={SECRET}", json=body, headers={"X-Secret": SECRET})
    assert reply.status_code == status
    (line,) = lines(caplog)
    assert getattr(line, FIELDS)["reason"] == reason
    assert reason in line.getMessage()
    assert line.levelname == "INFO"
    own = [one.getMessage() for one in caplog.records if one.name.startswith("unmask")]
    assert SECRET not in "".join(own)


def test_access_is_refused_with_an_id_and_no_key_in_the_log(demo_llm, caplog):
    caplog.set_level(logging.DEBUG)
    for access, header, status, reason in (
        (Access(key_digest=Access.digest("right")), {}, 401, "invalid_api_key"),
        (
            Access(key_digest=Access.digest("right")),
            {"Authorization": f"Bearer {SECRET}"},
            401,
            "invalid_api_key",
        ),
        (Access(hosts=frozenset({"a"})), {"Host": SECRET}, 403, "host_not_allowed"),
        (Access(), {"X-A": "a" * 20_000}, 431, "headers_too_large"),
    ):
        caplog.clear()
        app = create_app(demo_llm, Engine(demo_llm), ServerSettings(("demo",), access=access))
        with TestClient(app) as client:
            reply = client.get("/v1/models", headers={**header, "X-Request-Id": "mine"})
        assert (reply.status_code, reply.headers["x-request-id"]) == (status, "mine")
        (line,) = lines(caplog)
        assert getattr(line, FIELDS)["reason"] == reason
        assert SECRET not in caplog.text


def test_a_full_queue_is_logged_as_such(demo_llm, caplog):
    caplog.set_level(logging.INFO, "unmask.server")
    with gated_client(demo_llm) as client:
        client.engine.check_accepts = client.engine.submit = lambda *_, **__: full()
        reply = client.post(CHAT_URL, json=CHAT)
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "3"
    assert [getattr(line, FIELDS)["reason"] for line in lines(caplog)] == ["queue_full"]


def full():
    from unmask.errors import CapacityError

    raise CapacityError("full", 3.0)


def test_an_unexpected_error_has_the_id_in_reply_and_log(demo_llm, monkeypatch, caplog):
    with gated_client(demo_llm) as client:

        def fail(*_):
            raise RuntimeError("secret")

        monkeypatch.setattr(client.app.state.service.planner, "continuations", fail)
        reply = client.post(CHAT_URL, json=CHAT, headers={"X-Request-Id": "mine"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "mine")
    assert reply.json()["error"]["code"] == "internal_error"
    (failure,) = [one for one in caplog.records if one.exc_info]
    assert failure.getMessage() == "mine failed"
    (line,) = lines(caplog)
    assert line.levelname == "WARNING"
    assert getattr(line, FIELDS)["reason"] == "internal_error"


def test_a_decoded_answer_is_one_line_with_its_counts(client, caplog):
    caplog.set_level(logging.INFO, "unmask.server")
    for stream in (False, True):
        caplog.clear()
        client.post(CHAT_URL, json={**CHAT, "stream": stream, "user": "eve"})
        (line,) = caplog.records
        fields = getattr(line, FIELDS)
        assert (fields["end"], fields["completion"], fields["user"]) == ("done", 23, "eve")
        assert fields["id"].startswith("chatcmpl-")
        assert " completion=23 " in line.getMessage()


def test_probes_and_files_are_logged_at_debug_only(client, caplog):
    caplog.set_level(logging.INFO, "unmask.server")
    for path in ("/health", "/ready", "/metrics", "/static/app.js"):
        client.get(path)
    assert not caplog.records
    client.get("/static/none")
    assert len(caplog.records) == 1


def test_a_server_that_drains_says_so_on_its_probe(demo_llm, caplog):
    with gated_client(demo_llm) as client:
        client.app.state.service.is_draining = True
        assert client.get("/health").status_code == 503
    (line,) = lines(caplog)
    assert getattr(line, FIELDS)["reason"] == "draining"


# what is not HTTP

HEAD = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("first", "then", "answers"),
    [
        (b"no http at all\r\n\r\n", b"", [b"400"]),
        (b"GET / HTTP/1.1\r\n\r\n", b"", [b"400"]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"", [b"400"]),
        (JSON_HEAD, b"zz\r\n", [b"400"]),
        (HEAD, b"zz\r\n", [b"404"]),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"rubbish\r\n\r\n", [b"200", b"400"]),
    ],
)
def test_what_is_not_http_is_refused_with_an_id_and_no_traceback(
    demo_llm, caplog, first, then, answers
):
    caplog.set_level(logging.DEBUG)
    with serving(demo_llm) as live, live.connect() as client:
        client.sendall(first)
        found = b""
        if then:
            client.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                found = client.recv(65536)
            client.settimeout(20)
            client.sendall(then)
        while piece := client.recv(65536):
            found += piece
        assert re.findall(rb"HTTP/1.1 (\d+)", found) == answers
        assert len(re.findall(rb"(?i)x-request-id: \S+", found)) == len(answers)
        assert wait_for(lambda: "invalid_http" in caplog.text)
    assert not any(one.exc_info for one in caplog.records)
    assert not [one for one in caplog.records if one.name == "asyncio" and one.levelno > 20]
