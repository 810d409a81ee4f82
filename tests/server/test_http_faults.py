"""What goes wrong: a request, the queue, time, the engine. Numbers: checks of the specification."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Event

import pytest
from served import ANSWER, CHAT, QUESTION, gated_client, serving, wait_for
from tiny import tiny_llm

from unmask import decoders
from unmask.method import MethodSpec, Source
from unmask.server import process
from unmask.server.planning import MAX_PLANNING
from unmask.server.settings import ServerSettings

CHAT_URL, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BROKEN = '''"""A decoder that fails in its third step. Source: none."""
from dataclasses import dataclass
from unmask.decoders.threshold import Threshold


@dataclass(frozen=True)
class Broken(Threshold):
    def step(self, canvas, state, reading):
        if state.step >= 2:
            raise ValueError("secret reason")
        return super().step(canvas, state, reading)


DECODER = Broken
'''


@pytest.fixture
def gated(demo_llm):
    with gated_client(demo_llm, max_num_seqs=2, max_queue=2) as client:
        yield client


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken_in_step.py").write_text(BROKEN, encoding="utf-8")
    monkeypatch.setattr(decoders, "__path__", [*decoders.__path__, str(tmp_path)])
    return {**CHAT, "decoder": "broken_in_step", "block_length": 48}


def is_idle(engine):
    stats = engine.stats
    return stats.running + stats.queued == 0 and stats.rows_free == stats.rows_total


# 22
def test_a_decoder_that_fails_ends_its_own_request_only(gated, broken, caplog):
    gated.gate.close()
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(gated.post, CHAT_URL, json=CHAT)
        bad = pool.submit(gated.post, CHAT_URL, json=broken)
        assert wait_for(lambda: gated.engine.stats.running + gated.engine.stats.queued == 2)
        gated.gate.open()
        assert good.result().json()["choices"][0]["message"]["content"] == ANSWER
        response = bad.result()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "secret reason" in caplog.text, "the log has it"
    assert gated.get("/health").status_code == 200
    assert gated.post(CHAT_URL, json=CHAT).status_code == 200
    assert is_idle(gated.engine)


RULES = {"max_positions": "-5", "max_forwards": "None", "first_canvas": "3"}


@pytest.mark.parametrize("method", RULES)
def test_a_decoder_that_breaks_a_rule_before_the_first_forward_is_a_500(
    gated, tmp_path, monkeypatch, caplog, method
):
    name = f"breaks_{method}"
    rule = f"    def {method}(self, canvas, facts):\n        return {RULES[method]}\n\n\nDECODER"
    source = BROKEN[: BROKEN.index("    def step")] + rule + " = Broken\n"
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(decoders, "__path__", [*decoders.__path__, str(tmp_path)])
    response = gated.post(CHAT_URL, json={**CHAT, "decoder": name, "block_length": 48})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "failed")
    assert method not in response.text
    assert f"decoder {name!r} broke the contract" in caplog.text
    assert gated.post(CHAT_URL, json=CHAT).status_code == 200
    assert is_idle(gated.engine)


def test_answers_are_given_up_when_one_of_them_cannot_be_submitted(gated, monkeypatch):
    submit, count = gated.engine.submit, [0]

    def fail_second(*args, **kwargs):
        count[0] += 1
        if count[0] == 2:
            raise ValueError("secret reason")
        return submit(*args, **kwargs)

    gated.gate.close()
    monkeypatch.setattr(gated.engine, "submit", fail_second)
    response = gated.post(CHAT_URL, json={**CHAT, "n": 2})
    assert response.status_code == 500
    assert "secret" not in response.text
    gated.gate.open()
    assert wait_for(lambda: is_idle(gated.engine))
    assert gated.engine.stats.ended["aborted"] == 1


def test_a_stream_whose_decoder_fails_ends_with_an_error_event(gated, broken):
    response = gated.post(CHAT_URL, json={**broken, "stream": True})
    assert response.status_code == 200
    last = response.text.strip().splitlines()[-1]
    assert last.startswith('data: {"error"')
    assert "[DONE]" not in response.text
    assert "secret" not in response.text


# 19
def test_a_full_queue_refuses_at_once_and_those_inside_are_answered(gated):
    gated.gate.close()
    with ThreadPoolExecutor(4) as pool:
        inside = [pool.submit(gated.post, CHAT_URL, json=CHAT)]
        assert gated.gate.waits.wait(20)
        inside += [pool.submit(gated.post, CHAT_URL, json=CHAT) for _ in range(2)]
        assert wait_for(lambda: gated.engine.stats.queued == 2)
        for body in (CHAT, {**CHAT, "stream": True}):
            response = gated.post(CHAT_URL, json=body)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
        gated.gate.open()
        assert [one.result().status_code for one in inside] == [200] * 3
    assert is_idle(gated.engine)


def test_of_n_answers_all_are_queued_or_none(gated):
    gated.gate.close()
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(gated.post, CHAT_URL, json=CHAT)]
        assert gated.gate.waits.wait(20)
        inside.append(pool.submit(gated.post, CHAT_URL, json=CHAT))
        assert wait_for(lambda: gated.engine.stats.queued == 1)
        response = gated.post(CHAT_URL, json={**CHAT, "n": 2})
        assert response.status_code == 429
        gated.gate.open()
        assert [one.result().status_code for one in inside] == [200] * 2
    assert wait_for(lambda: is_idle(gated.engine))
    assert gated.engine.stats.ended["done"] == 2


def test_more_answers_than_the_queue_holds_are_not_worth_another_try(gated):
    response = gated.post("/v1/completions", json={"prompt": ["a"] * 3, "n": 2})
    assert response.status_code == 400
    assert "6 answers" in response.json()["error"]["message"]
    assert "at most 2" in response.json()["error"]["message"]
    assert "retry-after" not in response.headers


def test_a_guided_request_that_can_never_fit_is_told_so(demo_llm):
    with gated_client(demo_llm, max_num_seqs=1) as client:
        response = client.post(CHAT_URL, json={**CHAT, "cfg_scale": 1.0})
        assert response.status_code == 400
        assert "2 rows" in response.json()["error"]["message"]


# 20
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_time_is_over_is_told_so_and_frees_its_row(gated, stream):
    gated.gate.close()
    body = {**CHAT, "timeout_s": 0.2, "stream": stream}
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(gated.post, CHAT_URL, json=body)
        assert gated.gate.waits.wait(10)
        wait_for(lambda: False, 0.25)
        gated.gate.open()
        response = late.result()
    assert response.status_code == (200 if stream else 504)
    assert "timeout" in response.text
    assert wait_for(lambda: is_idle(gated.engine))
    assert gated.post(CHAT_URL, json=CHAT).status_code == 200


@pytest.fixture
def held(gated, monkeypatch):
    """The client; the making of plans of completions waits for `held.go`, and counts in `held.inside`."""
    planner, gated.go, gated.inside = gated.app.state.service.planner, Event(), []
    plain = planner.completion

    def completion(body, knobs):
        gated.inside.append(body)
        assert gated.go.wait(20)
        return plain(body, knobs)

    monkeypatch.setattr(planner, "completion", completion)
    yield gated
    gated.go.set()


def test_the_time_of_a_request_counts_from_its_arrival(held):
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(held.post, COMPLETIONS, json={"prompt": "A", "timeout_s": 0.1})
        assert wait_for(lambda: held.inside)
        wait_for(lambda: False, 0.15)
        held.go.set()
        response = late.result()
    assert response.status_code == 504
    assert "0.1 s" in response.json()["error"]["message"]
    assert held.engine.stats.num_forwards == 0, "there was no time left to decode"


def test_few_requests_are_planned_at_once_and_who_waits_too_long_is_told_so(held):
    body = {"prompt": "A", "max_tokens": 2}
    waiting = held.app.state.service.planning.limiter.statistics
    with ThreadPoolExecutor(6) as pool:
        sent = [pool.submit(held.post, COMPLETIONS, json=body) for _ in range(6)]
        assert wait_for(lambda: waiting().tasks_waiting == 2)
        assert len(held.inside) == MAX_PLANNING
        late = held.post(COMPLETIONS, json={**body, "timeout_s": 0.05})
        assert late.status_code == 504
        assert held.get("/health").status_code == 200
        held.go.set()
        found = {each.result().status_code for each in sent}
    assert 200 in found
    assert found <= {200, 429}, "the queue is short"


def test_more_time_than_the_server_gives_is_refused(gated):
    response = gated.post(CHAT_URL, json={**CHAT, "timeout_s": 601})
    assert response.status_code == 400
    assert "600" in response.json()["error"]["message"]


# 23
def test_a_dead_engine_answers_everyone_and_health_says_so(demo_llm, caplog):
    caplog.set_level(logging.CRITICAL)
    with gated_client(demo_llm, max_num_seqs=2, max_queue=4) as client:
        client.gate.close()
        with ThreadPoolExecutor(4) as pool:
            inside = [
                pool.submit(client.post, CHAT_URL, json={**CHAT, "stream": number == 3})
                for number in range(4)
            ]
            assert wait_for(lambda: client.engine.stats.running + client.engine.stats.queued == 4)
            client.gate.fails = True
            client.gate.open()
            responses = [one.result(20) for one in inside]
        assert [one.status_code for one in responses[:3]] == [503] * 3
        assert "engine_dead" in responses[3].text
        assert not any("secret" in one.text for one in responses)
        assert "secret reason" in caplog.text
        assert client.get("/health").status_code == 503
        assert client.head("/health").status_code == 503
        assert client.post(CHAT_URL, json=CHAT).status_code == 503
        assert client.get("/v1/models").status_code == 200
        assert client.get("/metrics").status_code == 200


def test_a_server_whose_engine_has_failed_answers_who_waits_and_ends(demo_llm, monkeypatch, caplog):
    monkeypatch.setattr(process, "FAILED_GRACE_S", 1.0)
    caplog.set_level(logging.CRITICAL)
    with serving(demo_llm, max_num_seqs=1) as live, ThreadPoolExecutor(3) as pool:
        live.gate.close()
        body = json.dumps(CHAT).encode()
        head = f"POST {CHAT_URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        inside = [pool.submit(live.send, request) for _ in range(3)]
        assert wait_for(lambda: live.engine.stats.running + live.engine.stats.queued == 3)
        assert not live.server.has_failed
        live.gate.fails = True
        live.gate.open()
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert wait_for(lambda: live.engine.failure is not None)
        assert live.send(health).startswith(b"HTTP/1.1 503")
        for answer in inside:  # their connections are closed by the server's end
            assert answer.result(20).startswith(b"HTTP/1.1 503")
        assert wait_for(lambda: live.server.should_exit)
        assert live.server.has_failed


def test_what_was_not_foreseen_is_answered_without_its_reason(demo_llm, monkeypatch):
    with gated_client(demo_llm) as client:

        def fail(*_):
            raise RuntimeError("secret")

        monkeypatch.setattr(client.app.state.service.planner, "continuations", fail)
        response = client.post(CHAT_URL, json=CHAT)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"


# 21
def test_a_draining_server_takes_nothing_new(gated):
    gated.app.state.service.is_draining = True
    assert gated.get("/health").status_code == 503
    response = gated.post(CHAT_URL, json=CHAT)
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_a_request_that_comes_as_the_engine_stops_is_told_so(gated):
    gated.engine.stop()
    response = gated.post(CHAT_URL, json=CHAT)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "stopping"


# 43
def test_metrics_count_up_and_their_labels_are_bounded(gated):
    def numbers():
        text = gated.get("/metrics").text
        lines = [line for line in text.splitlines() if line and line[0] != "#"]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = numbers()
    for number in range(12):
        junk = f"junk-{number}"
        gated.get(f"/{junk}")
        gated.get(f"/v1/models/{junk}")
        gated.post(CHAT_URL, json={**CHAT, "model": junk, "user": junk})
        gated.post(
            CHAT_URL, json={**CHAT, "max_tokens": 8, "user": junk, "threshold": 0.9 + number / 200}
        )
    after = numbers()
    assert not [name for name in after if "junk" in name]
    counters = [name for name in before if "_total" in name or "_count" in name]
    assert all(after[name] >= before[name] for name in counters)
    again = numbers()
    assert set(again) == set(after), "no new series"
    model = '{model_name="demo"}'
    for name in ("num_denoising_steps", "num_canvas_positions", "num_committed_tokens"):
        assert after[f"vllm:diffusion_{name}_total{model}"] > 0
    assert after['vllm:request_success_total{finished_reason="length",model_name="demo"}'] == 12
    assert after[f"vllm:time_to_first_token_seconds_count{model}"] == 12
    assert after[f"vllm:request_generation_tokens_sum{model}"] == 12 * 8
    assert after[f"vllm:request_prompt_tokens_count{model}"] == 12
    assert not [name for name in after if "_created" in name]
    assert after['unmask:http_requests_total{route="/v1/models/{name:path}",status="404"}'] == 12


def test_metrics_tell_how_fast_blocks_come(gated):
    def number(name):
        told = re.search(rf'^{name}{{model_name="demo"}} (.*)$', gated.get("/metrics").text, re.M)
        return 0.0 if told is None else float(told[1])

    body = {"prompt": "A dog", "max_tokens": 80, "ignore_eos": True, "block_length": 8}
    with ThreadPoolExecutor(1) as pool:
        gated.gate.close()
        sent = pool.submit(gated.post, COMPLETIONS, json=body)
        assert gated.gate.waits.wait(10)
        wait_for(lambda: False, 0.1)
        gated.gate.open()
        assert sent.result().json()["usage"]["completion_tokens"] == 80
    first, between = "unmask:time_to_first_block_seconds", "unmask:block_latency_seconds"
    per_token = "vllm:request_time_per_output_token_seconds"
    assert number(f"{first}_count") == 1
    assert number(f"{between}_count") == 2, "32, 32 and 16 tokens"
    assert number(f"{first}_sum") > 0.1, "waiting included"
    whole = number("vllm:e2e_request_latency_seconds_sum")
    assert 0 < number(f"{between}_sum") <= whole - number(f"{first}_sum")
    assert number(f"{between}_sum") / 79 <= number(f"{per_token}_sum") < whole / 79
    one = gated.post(COMPLETIONS, json={**body, "max_tokens": 1, "block_length": 1})
    assert one.json()["usage"]["completion_tokens"] == 1
    assert number(f"{first}_count") == 2
    assert number(f"{between}_count") == 2
    assert number(f"{per_token}_count") == 1, "a single token has no time after the first"


def test_metrics_never_fall_or_grow_new_series_while_requests_run(demo_llm):
    def numbers():
        lines = [line for line in client.get("/metrics").text.splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def junk(number):
        name = f"junk{number}"
        body = {
            **CHAT,
            "max_tokens": 4,
            "user": name,
            "decoder": f"threshold(threshold=0.{number})",
        }
        client.post(CHAT_URL, json=body)
        client.post(CHAT_URL, json={**body, "decoder": name, "cache": name, name: name})
        client.request(name.upper(), f"/{name}?{name}", headers={name: name, "user-agent": name})
        client.get(f"/static/{name}")
        client.post("/generate", json={"text": "a", "rid": name, "sampling_params": {"n": 0}})

    with gated_client(demo_llm, max_num_seqs=4) as client, ThreadPoolExecutor(6) as pool:
        junk(1)
        client.get("/metrics")
        scrapes = [numbers()]
        work = [pool.submit(junk, number) for number in range(10, 40)]
        while not all(one.done() for one in work):
            scrapes.append(numbers())
        scrapes.append(numbers())
        assert [one.result() for one in work] == [None] * 30
    assert len(scrapes) > 4
    assert all(set(one) == set(scrapes[0]) for one in scrapes), "no new series"
    rising = [n for n in scrapes[0] if re.search(r"_(total|count|sum|bucket)(\{|$)", n)]
    assert len(rising) > 20
    for before, after in pairwise(scrapes):
        fallen = [name for name in rising if after[name] < before[name]]
        assert not fallen
    assert (
        scrapes[-1]['vllm:request_success_total{finished_reason="length",model_name="demo"}'] == 31
    )


def test_the_metrics_tell_how_full_the_pages_are():
    llm = tiny_llm("llada", block_size=4)
    line = re.compile(r'^vllm:kv_cache_usage_perc\{model_name="tiny"\} (\S+)$', re.MULTILINE)
    with gated_client(
        llm, ServerSettings(("tiny",), MethodSpec.parse(Source({"cache": "block_causal"})))
    ) as client:

        def usage():
            return float(line.search(client.get("/metrics").text)[1])

        client.gate.close()
        with ThreadPoolExecutor(1) as pool:
            body = {"prompt": [7] * 40, "max_tokens": 4}
            running = pool.submit(client.post, "/v1/completions", json=body)
            assert client.gate.waits.wait(20)
            stats = client.engine.stats
            assert usage() == pytest.approx(3 / stats.pages_total), "44 positions, 16 a page"
            client.gate.open()
            assert running.result().status_code == 200
        assert usage() == 0


# 46
def test_a_log_line_can_not_be_forged(gated, caplog):
    caplog.set_level(logging.INFO, "unmask.server")
    forged = "eve\nINFO forged\u2028\u001b[31m"
    gated.post(CHAT_URL, json={**CHAT, "max_tokens": 8, "user": forged})
    gated.post("/generate", json={"text": QUESTION, "rid": forged})
    lines = [record.getMessage() for record in caplog.records if "user=" in record.getMessage()]
    assert len(lines) == 2
    for line in lines:
        assert line.isprintable()
        assert "eve\\nINFO forged\\u2028\\x1b[31m" in line
