"""A real server behind a socket: clients that leave, dawdle or send nonsense; the openai SDK."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading

import pytest
from served import ANSWER, CHAT, QUESTION, Live, drip, read_all, serving, wait_for

from unmask.server import process

CHAT_URL = "/v1/chat/completions"
MESSAGES = CHAT["messages"]


def raw(body: dict, url: str = CHAT_URL, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {url} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def health(live: Live) -> bytes:
    return live.send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


# 17
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["running", "queued", "midway"])
def test_a_client_that_leaves_frees_its_row(live, stream, when):
    before = live.engine.stats
    live.gate.close()
    body = raw({**CHAT, "decoder": "vanilla", "stream": stream})
    others = []
    if when == "queued":
        others = [live.connect() for _ in range(5)]
        for other in others:
            other.sendall(body)
        assert live.gate.waits.wait(20)
        assert wait_for(lambda: live.engine.stats.running + live.engine.stats.queued >= 3)
    client = live.connect()
    client.sendall(body)
    assert live.gate.waits.wait(20)
    if when == "midway":
        live.gate.open()
        assert wait_for(lambda: live.engine.stats.num_steps > before.num_steps + 2)
    client.close()
    for other in others:
        other.close()
    live.gate.open()
    assert live.idle()
    after = live.engine.stats.ended
    assert after["done"] == before.ended["done"], "nobody decoded to the end for nobody"
    assert after["aborted"] >= before.ended["aborted"] + 1
    assert b"200 OK" in health(live)


def test_a_client_that_reads_its_answer_and_leaves_leaves_nothing_behind(live):
    answer = live.send(raw(CHAT, CHAT_URL, "Connection: close"))
    assert b"#### 17" in answer
    assert live.idle()


# 10
def test_a_body_that_never_ends_is_not_read_to_its_end(live):
    head = b"POST /v1/infill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with live.connect() as client:
        client.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(piece)
                sent += 1
    assert sent < 300, "4 MiB are 64 pieces; the rest may lie in buffers"


# 11
def test_a_head_that_never_ends_is_cut_off(live):
    answer = live.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000)
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("large", ["X-A: " + "a" * 20_000, "\r\n".join(["X-A: 1"] * 1000)])
def test_too_large_heads_are_answered_and_the_connection_closed(live, large):
    head = f"GET /health HTTP/1.1\r\nHost: x\r\n{large}\r\n\r\n"
    answer = live.send(head.encode())  # reads until the server closes
    assert answer.startswith(b"HTTP/1.1 431")
    assert len(answer) < 4096


# 12
def test_slow_heads_and_slow_bodies_run_into_a_timeout(demo_llm, monkeypatch):
    from unmask.server.settings import Limits, ServerSettings

    monkeypatch.setattr(process, "HEAD_TIMEOUT_S", 0.2)
    settings = ServerSettings(("demo",), limits=Limits(body_timeout_s=0.2))
    with serving(demo_llm, settings) as live:
        for start in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"):
            with live.connect() as client:
                client.sendall(start)
                assert read_all(client) == b""
        head = raw(CHAT).partition(b"\r\n\r\n")[0]
        with live.connect() as client:
            client.sendall(head + b"\r\n\r\n{")
            assert read_all(client).startswith(b"HTTP/1.1 408")
        with live.connect() as client:
            for _ in range(2):
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = read_all(client, until=b'{"status":"ok"}')
                assert answer.startswith(b"HTTP/1.1 200"), "kept alive"


def test_a_client_that_dawdles_but_never_stops_runs_into_the_same_timeouts(demo_llm, monkeypatch):
    from unmask.server.settings import Limits, ServerSettings

    monkeypatch.setattr(process, "HEAD_TIMEOUT_S", 0.2)
    settings = ServerSettings(("demo",), limits=Limits(body_timeout_s=0.2))
    with serving(demo_llm, settings) as live:
        with live.connect() as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            assert drip(client, b"X-A: b\r\n") == b""
        with live.connect() as client:
            client.sendall(raw(CHAT).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            assert drip(client, b" ").startswith(b"HTTP/1.1 408")


# 38
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "PROPFIND", "get", "G\0T"]
PATHS = [
    *(
        "/",
        "/static",
        "/static/",
        "/static/app.js",
        "/static/app.js%00",
        "/static/%ff",
        "/%",
        "//",
        "*",
    ),
    *(
        "/static/%2e%2e%2fapp.py",
        "/static/..%5capp.py",
        "/static/%c0%ae%c0%ae/app.py",
        "/static/\xff",
    ),
    *("/static/" + "a" * 300, "/static/" + "a/" * 3000, "/v1/models/%00", "/v1/models/a%0d%0ab"),
    *("http://evil/v1/models", "/?" + "q" * 5000, "/v1/models/" + "%41" * 3000, "/v1/models?x=%ff"),
]
HEADERS = [
    *(
        "Host: a\r\nHost: b",
        "Host:",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
    ),
    *("Transfer-Encoding: chunked\r\nContent-Length: 3", "Transfer-Encoding: gzip", "X\0: a"),
    *("Content-Length: \xb2", "X-A: \xff\xfe", "X-A: a\0b", "Upgrade: h2c\r\nConnection: Upgrade"),
    *("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x", "Authorization: a\xff"),
    *(
        "Range: bytes=5-1",
        "Range: bytes=\xb2-",
        "Range: bytes=9999999-",
        "Range: x",
        "Cookie: a=\xff",
    ),
    *(
        "If-Modified-Since: Thu, 99 Foo 99999",
        "Content-Type: \xff/\0",
        "Expect: 999",
        "Origin: null",
    ),
]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_and_no_path_makes_the_server_fail_or_tell(live, method):
    for path in PATHS:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Mine: SECRET\r\nConnection: close\r\n\r\n"
        answer = live.send(head.encode("latin-1"))
        assert re.match(rb"HTTP/1.1 [234]\d\d ", answer), (path, answer)
        assert not re.search(rb"Traceback|SECRET|site-packages|/src/unmask", answer), path


@pytest.mark.parametrize("header", HEADERS)
def test_no_header_makes_the_server_fail(live, header):
    for path in ("/", "/static/app.js", "/v1/models", "/metrics"):
        host = "" if header.startswith("Host") else "Host: x\r\n"
        head = f"GET {path} HTTP/1.1\r\n{host}{header}\r\nConnection: close\r\n\r\n"
        with live.connect() as client:
            client.sendall(head.encode("latin-1"))
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
        assert re.match(rb"HTTP/1.1 [234]\d\d |$", answer), (path, answer)
        assert b"Traceback" not in answer
    assert b"200 OK" in health(live)


# 21
def test_a_signal_lets_streams_finish_and_then_ends(demo_llm):
    with serving(demo_llm) as live:
        live.gate.close()
        client = live.connect()
        client.sendall(raw({**CHAT, "stream": True}, CHAT_URL, "Connection: close"))
        assert live.gate.waits.wait(20)
        live.server.handle_exit(15, None)
        assert b"503" in health(live).partition(b"\r\n")[0]
        refused = live.send(raw(CHAT, CHAT_URL, "Connection: close"))
        assert b"503" in refused.partition(b"\r\n")[0]
        live.gate.open()
        answer = read_all(client)
        client.close()
        assert b"data: [DONE]" in answer
        assert wait_for(lambda: live.server.should_exit)


def test_what_runs_longer_than_the_drain_time_is_aborted(demo_llm):
    with serving(demo_llm, drain_timeout_s=0.1) as live:
        live.gate.close()
        client = live.connect()
        client.sendall(raw({**CHAT, "stream": True}, CHAT_URL, "Connection: close"))
        assert live.gate.waits.wait(20)
        live.server.handle_exit(15, None)
        wait_for(lambda: False, 0.5)
        assert not live.server.should_exit, "it waits for the forward under way"
        live.gate.open()
        answer = read_all(client)
        client.close()
        assert b"the server is stopping" in answer
        assert b"[DONE]" not in answer
        assert wait_for(lambda: live.server.should_exit)


def test_a_second_signal_aborts_what_runs(demo_llm):
    with serving(demo_llm) as live:
        live.gate.close()
        client = live.connect()
        body = {**CHAT, "decoder": "vanilla", "stream": True}
        client.sendall(raw(body, CHAT_URL, "Connection: close"))
        assert live.gate.waits.wait(20)
        live.server.handle_exit(15, None)
        live.server.handle_exit(15, None)
        live.gate.open()
        answer = read_all(client)
        client.close()
        assert b"the server is stopping" in answer
        assert b"[DONE]" not in answer


# 45
@pytest.fixture(scope="module")
def sdk(live):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_sdk_chats(sdk):
    assert [model.id for model in sdk.models.list()] == ["demo"]
    reply = sdk.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=48, extra_body={"decoder": "threshold"}
    )
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 23
    assert reply.usage.num_forwards > 0


def test_the_openai_sdk_streams(sdk):
    stream = sdk.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        max_completion_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"decoder": "threshold", "block_length": 8, "threshold": 0.8},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert chunks[-1].usage.completion_tokens == 23


def test_the_openai_sdk_completes_and_fills_the_middle(sdk):
    reply = sdk.completions.create(
        model="demo",
        prompt="The dog slept on the",
        suffix=" of the house.",
        max_tokens=1,
        logprobs=0,
    )
    assert reply.choices[0].text == " floor"
    assert reply.choices[0].logprobs.token_logprobs[0] < 0
    pieces = list(sdk.completions.create(model="demo", prompt=[5, 6], max_tokens=8, stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_the_openai_sdk_is_told_what_is_wrong(sdk):
    import openai

    with pytest.raises(openai.BadRequestError, match="did you mean 'threshold'"):
        sdk.chat.completions.create(
            model="demo", messages=MESSAGES, extra_body={"decoder": "treshold"}
        )
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="gpt", messages=MESSAGES)


def test_the_openai_sdk_works_asynchronously_and_may_stop_reading(live):
    openai = pytest.importorskip("openai")

    async def several():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:

            async def one(stream):
                reply = await client.chat.completions.create(
                    model="demo",
                    messages=MESSAGES,
                    max_tokens=48,
                    stream=stream,
                    extra_body={"decoder": "threshold"},
                )
                if not stream:
                    return reply.choices[0].message.content
                return "".join([c.choices[0].delta.content or "" async for c in reply])

            texts = await asyncio.gather(*[one(number % 2 == 0) for number in range(4)])
            abandoned = await client.chat.completions.create(
                model="demo", messages=MESSAGES, max_tokens=48, stream=True
            )
            async for _ in abandoned:
                break
            await abandoned.close()
            return texts

    assert asyncio.run(several()) == [ANSWER] * 4
    assert live.idle()


# 44
@pytest.mark.slow
def test_a_thousand_requests_with_random_ends_leave_nothing_behind(demo_llm):
    import ctypes
    import os
    import random
    from concurrent.futures import ThreadPoolExecutor

    from unmask import decoders

    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    def resident() -> int:
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # what is free is no leak
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def one(number: int) -> None:
        chance = random.Random(number)
        body = {
            "prompt": QUESTION[: chance.randint(3, 60)],
            "max_tokens": chance.choice([4, 8, 16, 24]),
            "decoder": chance.choice(["threshold", "factor", "klass", "wino", "eb_sampler"]),
            "cache": chance.choice(["none", "none", "dual", "dllm"]),
            "stream": chance.random() < 0.5,
            "stop": chance.choice([None, ".", "a"]),
            "temperature": chance.choice([0, 1.0]),
            "n": chance.choice([1, 1, 2]),
        }
        with live.connect() as client:
            client.sendall(raw(body, "/v1/completions", "Connection: close"))
            if chance.random() < 0.4:
                client.settimeout(chance.random() * 0.3 + 0.001)
                with contextlib.suppress(TimeoutError):
                    client.recv(100)
                return
            client.settimeout(120)
            answer = read_all(client)
            assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 429")), answer[:200]

    assert decoders.names()
    with serving(demo_llm, max_num_seqs=8, max_queue=64) as live, ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(800)))  # oneDNN keeps up to 1,024 kernels, one a number of rows
        assert live.idle()
        before = handles(), threading.active_count(), resident()
        list(pool.map(one, range(800, 1800)))
        assert live.idle()
        assert wait_for(lambda: handles() <= before[0] + 2)
        assert threading.active_count() <= before[1] + 2
        assert resident() < before[2] + 64 * 2**20
        assert live.engine.stats.listener_errors == 0
