"""Templates that hang behind a server, and a server that says so when it does not move."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from served import CHAT, gated_client, wait_for

from unmask import LLM
from unmask.engine.engine import Engine
from unmask.errors import ConfigError
from unmask.models import BUNDLED
from unmask.server.app import create_app
from unmask.server.planning import MAX_PLANNING, Planning
from unmask.server.settings import Limits, ServerSettings

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}{% endfor %}"
SOMETIMES = "{% if 'bomb' in messages[-1].content %}" + LOOP + "{% endif %}" + TURNS
CHAT_URL, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT = {"prompt": "A", "max_tokens": 2}
BOMB: dict[str, Any] = {"messages": [{"role": "user", "content": "bomb"}], "max_tokens": 2}
MILD: dict[str, Any] = {"messages": [{"role": "user", "content": "mild"}], "max_tokens": 2}


def settings(**limits: Any) -> ServerSettings:
    return ServerSettings(models=("demo",), limits=Limits(**limits))


@pytest.fixture(scope="module")
def wary() -> Iterator[TestClient]:
    """The demo model with a template that hangs on some messages."""
    llm = LLM("demo", dtype="float32", device="cpu", chat_template=SOMETIMES)
    with TestClient(create_app(llm, Engine(llm), settings())) as found:
        yield found


def test_the_time_of_a_request_ends_its_template_and_others_go_on(wary):
    body = {**BOMB, "timeout_s": 1.0}
    began = time.monotonic()
    with ThreadPoolExecutor(MAX_PLANNING) as pool:
        hung = [pool.submit(wary.post, CHAT_URL, json=body) for _ in range(MAX_PLANNING - 1)]
        planning = wary.app.state.service.planning
        assert wait_for(lambda: planning.num_running == MAX_PLANNING - 1)
        assert wary.post(CHAT_URL, json=MILD).status_code == 200
        assert wary.post(COMPLETIONS, json=SHORT).status_code == 200
        assert wary.get("/health").json() == {"status": "ok"}
        replies = [each.result() for each in hung]
    assert [reply.status_code for reply in replies] == [504] * (MAX_PLANNING - 1)
    assert time.monotonic() - began < 25
    assert wait_for(lambda: planning.num_running == 0), "no thread is left behind"
    assert wary.post(CHAT_URL, json=MILD).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        CHAT_URL,
        pytest.param("/tokenize", marks=pytest.mark.slow),
        pytest.param("/v1/responses", marks=pytest.mark.slow),
    ],
)
def test_a_template_that_exceeds_its_limit_is_the_request_s_error(wary, url):
    body = {"input": "bomb"} if url == "/v1/responses" else {"messages": BOMB["messages"]}
    reply = wary.post(url, json=body)
    assert reply.status_code == 400, reply.text
    assert "chat template takes more than 5 s and was stopped" in reply.json()["error"]["message"]
    assert "unmask:planning_stopped_total" in wary.get("/metrics").text


@pytest.mark.parametrize("template", [LOOP, "{{ 'x' * 10**10 }}"])
def test_a_template_that_never_ends_leaves_the_other_routes(template, caplog):
    caplog.set_level(logging.WARNING)
    llm = LLM("demo", dtype="float32", device="cpu", chat_template=template)
    with TestClient(create_app(llm, Engine(llm), settings())) as client:
        assert "was stopped" in caplog.text
        began = time.monotonic()
        for _ in range(2 * MAX_PLANNING):
            assert client.post(CHAT_URL, json=MILD).status_code == 400
        assert time.monotonic() - began < 5, "it is not tried again"
        assert client.post(COMPLETIONS, json=SHORT).status_code == 200
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_health_tells_of_a_forward_that_does_not_end(demo_llm):
    with gated_client(demo_llm, settings(watchdog_timeout=0.3)) as client:
        assert client.get("/health").json() == {"status": "ok"}
        client.gate.close()
        with ThreadPoolExecutor(1) as pool:
            inside = pool.submit(client.post, CHAT_URL, json=CHAT)
            assert client.gate.waits.wait(20)
            assert wait_for(lambda: client.get("/health").status_code == 503)
            for route in ("/health", "/ready"):
                reply = client.get(route)
                assert reply.status_code == client.head(route).status_code == 503
                assert reply.json()["status"] == "stalled"
                assert "engine has been in one forward" in reply.json()["reason"]
                assert "--watchdog-timeout 0.3" in reply.json()["reason"]
            assert "unmask:engine_stalled_seconds" in client.get("/metrics").text
            client.gate.open()
            assert inside.result().status_code == 200
        assert wait_for(lambda: client.engine.stalled_s == 0)
        assert client.get("/health").json() == {"status": "ok"}


def test_a_long_forward_within_the_limit_is_no_stall(demo_llm):
    with gated_client(demo_llm) as client:
        client.gate.close()
        with ThreadPoolExecutor(1) as pool:
            inside = pool.submit(client.post, CHAT_URL, json=CHAT)
            assert client.gate.waits.wait(20)
            assert wait_for(lambda: client.engine.stalled_s > 0.3)
            assert client.get("/health").status_code == 200
            client.gate.open()
            assert inside.result().status_code == 200


@pytest.mark.parametrize("error", [StopIteration("empty"), ValueError("odd")])
def test_whatever_planning_raises_ends_the_call(error):
    async def call():
        with pytest.raises((RuntimeError, ValueError), match=str(error)):
            await asyncio.wait_for(Planning().run(fails, 30.0, time.monotonic()), 10)

    def fails():
        raise error

    asyncio.run(call())


def test_health_tells_of_planning_that_does_not_move(demo_llm, monkeypatch):
    with gated_client(demo_llm, settings(watchdog_timeout=0.3)) as client:
        service, go = client.app.state.service, Event()
        monkeypatch.setattr(service.planner, "completion", lambda *_: go.wait(30) and [])
        with ThreadPoolExecutor(MAX_PLANNING + 1) as pool:
            body = {**SHORT, "timeout_s": 0.2}
            inside = [pool.submit(client.post, COMPLETIONS, json=body) for _ in range(MAX_PLANNING)]
            assert [each.result().status_code for each in inside] == [504] * MAX_PLANNING
            assert service.planning.num_running == MAX_PLANNING, "the threads hang on"
            assert wait_for(lambda: client.get("/health").status_code == 503)
            assert "threads that read prompts" in client.get("/ready").json()["reason"]
            go.set()
        assert wait_for(lambda: service.planning.num_running == 0)
        assert client.get("/health").json() == {"status": "ok"}


def test_one_place_that_moves_is_no_stall(demo_llm, monkeypatch):
    with gated_client(demo_llm, settings(watchdog_timeout=0.3)) as client:
        service, go = client.app.state.service, Event()
        monkeypatch.setattr(service.planner, "completion", lambda *_: go.wait(30) and [])
        with ThreadPoolExecutor(MAX_PLANNING) as pool:
            body = {**SHORT, "timeout_s": 0.5}
            for each in [pool.submit(client.post, COMPLETIONS, json=body) for _ in range(3)]:
                assert each.result().status_code == 504
            assert client.get("/health").json() == {"status": "ok"}
            go.set()


def test_stopping_does_not_wait_for_ever_for_a_forward(demo_llm, monkeypatch):
    monkeypatch.setattr("unmask.server.service.STOP_TIMEOUT_S", 0.2)
    with gated_client(demo_llm) as client, ThreadPoolExecutor(1) as pool:
        client.gate.close()
        inside = pool.submit(client.post, CHAT_URL, json=CHAT)
        assert client.gate.waits.wait(20)
        service = client.app.state.service
        service.stop()
        assert service.has_hung
        client.gate.open()
        assert inside.result().status_code == 503


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_the_limit_of_the_watchdog_is_a_positive_number(value):
    with pytest.raises(ConfigError, match="watchdog_timeout"):
        Limits(watchdog_timeout=value)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_server_whose_template_hangs(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED["demo"], folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    (folder / "chat_template.jinja").write_text(SOMETIMES, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unmask.cli.main", "serve", str(folder), "--port", str(port)]
    own = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        subprocess.Popen(
            [*command, "--shutdown-timeout", "2"],
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
        ThreadPoolExecutor(5) as pool,
    ):
        try:
            assert process.stdout is not None
            assert any(line == "ready\n" for line in process.stdout)
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{CHAT_URL}",
                json.dumps(BOMB).encode(),
                {"Content-Type": "application/json"},
            )
            hung = [pool.submit(urllib.request.urlopen, request, timeout=60) for _ in range(5)]
            metrics = f"http://127.0.0.1:{port}/metrics"
            running = 'unmask:planning_running{model_name="model"} 4.0'
            assert wait_for(
                lambda: running in urllib.request.urlopen(metrics, timeout=20).read().decode()
            )
            process.send_signal(number)
            assert process.wait(25) == 0
            assert all(each.exception(5) is not None for each in hung)
        finally:
            process.kill()
