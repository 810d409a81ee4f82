"""`/v1/decisions` and `/v1/systemone`: contracts, own fields, and refusals."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from served import gated_client, wait_for

from unmask.decisions import Calibration, choice, score
from unmask.decisions.calibration import calibrated
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.settings import Limits, ServerSettings

URL, ONE = "/v1/decisions", "/v1/systemone"
SUM = {
    "type": "choice",
    "instructions": "26+15=",
    "name": "sum",
    "choices": [{"value": str(n)} for n in (40, 41, 51)],
}
LEVEL = {"type": "score", "instructions": "5+4=", "levels": [{"label": "8"}, {"label": "9"}]}
IS = {"type": "predicate", "instructions": "Is it so?"}
CLOZE = {"input": "", "layout": "cloze"}


def answers(client, **body):
    reply = client.post(URL, json={"input": "The cat is red.", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_answers_are_those_of_python(client, demo_llm):
    body = answers(client, questions=[SUM, LEVEL], **CLOZE)
    questions = [choice("26+15=", ["40", "41", "51"]), score("5+4=", ["8", "9"])]
    first, second = demo_llm.decide("", questions, layout="cloze").answers
    one, other = body["answers"]
    assert [each["probability"] for each in one["probabilities"]] == pytest.approx(
        first.probabilities
    )
    assert (one["choice"], one["name"], one["confidence"]) == (
        "41",
        "sum",
        pytest.approx(first.confidence),
    )
    assert one["label_mass"] == pytest.approx(first.label_mass)
    assert (other["score"], other["name"]) == (pytest.approx(second.score), None)
    assert [each["value"] for each in other["probabilities"]] == [0, 1]
    assert body["usage"]["num_rows"] == 1
    assert body["usage"]["output_tokens"] == 0


def test_the_sdk_reads_the_reply_and_sends_what_the_route_takes(live):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://{live.host}:{live.port}/v1", api_key="x") as sdk:
        if not hasattr(sdk, "decisions"):
            pytest.skip("this openai package has no decisions")
        found = sdk.decisions.create(
            model="demo",
            input=[
                {"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
                {"role": "user", "content": [{"type": "input_json", "data": {"a": [1, None]}}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "ok"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
            ],
            questions=[
                SUM,
                LEVEL,
                IS,
                {**SUM, "choices": [{"value": True}, {"value": "true", "description": "text"}]},
            ],
            prompt_cache_key="k",
            prompt_cache_options={"mode": "implicit", "ttl": "30m"},
            safety_identifier="s",
        )
    kinds = ["choice", "score", "predicate", "choice"]
    assert [answer.type for answer in found.answers] == kinds
    assert isinstance(found.answers[3].choice, bool | str)
    assert found.answers[3].probabilities[0].value is True
    assert found.usage.input_tokens_details.cached_tokens == 0
    assert found.model == "demo"


def test_the_transcript_names_roles_calls_and_results():
    from unmask.server.decision_models import DecisionRequest

    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "ls"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "a b"}],
        },
        {"type": "function_call", "call_id": "d", "name": "f", "namespace": "n", "arguments": "{}"},
    ]
    body = DecisionRequest.model_validate({"input": items, "questions": [IS]})
    assert body.text() == (
        "developer: Be brief.\nassistant called run: ls\nrun returned: a b\nassistant called n.f: {}"
    )
    alone = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Hi"},
                {"type": "input_json", "data": {"a": 1}},
            ],
        }
    ]
    assert (
        DecisionRequest.model_validate({"input": alone, "questions": [IS]}).text() == 'Hi\n{"a":1}'
    )


def test_system_one_has_its_own_form(client):
    questions = {
        "is": {
            "type": "noul",
            "instructions": "Is it so?",
            "criteria": {"true": "yes", "false": None},
        },
        "tone": {"type": "choice", "criteria": {"calm": "polite", "loud": None}},
        "level": {"type": "score", "instructions": {"q": 1}, "criteria": ["low", {"a": 1}, "high"]},
    }
    reply = client.post(
        ONE, json={"model": "demo", "state": {"cat": "red"}, "questions": questions}
    )
    assert reply.status_code == 200, reply.text
    found = reply.json()["answers"]
    assert list(found) == ["is", "tone", "level"]
    assert 0 <= found["is"]["noul"] <= 1
    assert set(found["tone"]["probabilities"]) == {"calm", "loud"}
    assert found["tone"]["choice"] in ("calm", "loud")
    assert found["level"]["legend"] == {"0": "low", "1": {"a": 1}, "2": "high"}
    assert sum(found["level"]["probabilities"].values()) == pytest.approx(1)
    assert reply.json()["usage"]["output_tokens"] == 0


@pytest.mark.parametrize(
    "field", [{"independent": True}, {"orders": 2}, {"estimator": "likelihood", "layout": "cloze"}]
)
def test_each_own_field_changes_the_number_of_canvases(client, field):
    plain = answers(client, questions=[SUM, LEVEL])["usage"]["num_rows"]
    found = answers(client, questions=[SUM, LEVEL], **field)
    assert found["usage"]["num_rows"] > plain
    assert field.items() <= found["unmask"].items()


def test_the_servers_calibration_is_applied(demo_llm, client):
    settings = ServerSettings(models=("demo",), calibration=Calibration(4.0))
    plain = answers(client, questions=[IS])["answers"][0]["probability"]
    with TestClient(create_app(demo_llm, Engine(demo_llm), settings)) as other:
        found = answers(other, questions=[IS])
    import numpy as np

    assert found["answers"][0]["probability"] == pytest.approx(
        calibrated(np.array([plain, 1 - plain]), 4.0)[0]
    )
    assert found["unmask"]["temperature"] == 4.0


REFUSED = [
    ({"questions": []}, "at least 1", "questions"),
    ({"questions": [IS] * 401}, "at most 400", "questions"),
    (
        {"questions": [{**IS, "choices": [{"value": "a"}, {"value": "b"}]}]},
        "has no choices",
        "questions.0",
    ),
    ({"questions": [{"type": "choice", "instructions": "x"}]}, "needs choices", "questions.0"),
    ({"questions": [{**SUM, "choices": [{"value": "a"}, {"value": "a"}]}]}, "twice", "questions"),
    ({"questions": [IS], "orders": 17}, "16", "orders"),
    ({"questions": [IS], "layout": "cloze", "orders": 2}, "no effect", "questions"),
    ({"questions": [IS], "stream": True}, "unknown field", "stream"),
    ({"questions": [IS], "model": "gpt-6-luna"}, "not served", "model"),
    (
        {
            "questions": [IS],
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}],
        },
        "images are not supported",
        "input",
    ),
    (
        {
            "questions": [IS],
            "input": [{"type": "function_call_output", "call_id": "z", "output": "x"}],
        },
        "no function_call before it",
        None,
    ),
    (
        {
            "questions": [IS],
            "input": [{"role": "system", "content": [{"type": "input_json", "data": {}}]}],
        },
        "no part here",
        "input",
    ),
    ({"questions": [IS], "input": [{"type": "message", "role": "user"}]}, "needs content", "input"),
    ({"questions": [IS], "input": "x" * 5000}, "context", "questions"),
]


@pytest.mark.parametrize(("body", "words", "param"), REFUSED)
def test_what_is_not_allowed_is_refused_in_plain_words(client, body, words, param):
    reply = client.post(URL, json={"input": "x", **body})
    assert reply.status_code in (400, 404), reply.text
    error = reply.json()["error"]
    assert words in error["message"]
    assert param is None or str(error["param"]).startswith(param)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"type": "choice", "criteria": {"a": None}}, "2 to 255 options"),
        ({"type": "score", "criteria": "x"}, "a list"),
        ({"type": "noul", "criteria": {"maybe": "x"}}, "true and false"),
    ],
)
def test_system_one_refuses_other_criteria(client, question, words):
    reply = client.post(ONE, json={"state": "x", "questions": {"q": question}})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    reply = client.post(
        ONE, json={"state": "x", "questions": {"q": {"type": "noul"}}, "assets": {"a": {}}}
    )
    assert "leave assets out" in reply.json()["error"]["message"]


def test_json_of_many_levels_is_refused(client):
    deep = {"a": 1}
    for _ in range(40):
        deep = {"a": deep}
    reply = client.post(ONE, json={"state": deep, "questions": {"q": {"type": "noul"}}})
    assert reply.status_code == 400
    assert "32 levels" in reply.json()["error"]["message"]


@contextmanager
def small_queue(llm, **sizes):
    engine = Engine(llm, EngineConfig(**sizes))
    with TestClient(create_app(llm, engine, ServerSettings(models=("demo",)))) as client:
        client.engine = engine
        yield client


def test_a_request_of_more_canvases_than_the_queue_is_answered_in_waves(demo_llm, client):
    body = {"questions": [SUM, LEVEL, IS] * 3, "independent": True}
    plain = answers(client, **body)
    with small_queue(demo_llm, max_queue=2, max_num_seqs=2) as small:
        found = answers(small, **body)
        assert small.engine.stats.queued == small.engine.stats.running == 0
    assert found["usage"] == plain["usage"]
    assert found["usage"]["num_rows"] == 9
    assert found["answers"][0]["probabilities"] == [
        {**each, "probability": pytest.approx(each["probability"], abs=1e-5)}
        for each in plain["answers"][0]["probabilities"]
    ]


@pytest.mark.parametrize("fields", [{"independent": True}, {}])
def test_as_many_questions_as_the_contract_allows_are_answered(client, fields):
    questions = [{**IS, "name": str(number)} for number in range(400)]
    body = answers(client, input="x", questions=questions, **fields)
    assert [each["name"] for each in body["answers"]] == [str(number) for number in range(400)]
    num_rows = body["usage"]["num_rows"]
    assert num_rows == 400 if fields else 1 < num_rows < 40
    assert len({each["probability"] for each in body["answers"]}) == 1 or not fields


def test_the_time_of_a_request_holds_for_all_of_its_waves(demo_llm):
    body = {"input": "x", "questions": [IS] * 6, "independent": True}
    with gated_client(demo_llm, max_queue=1, max_num_seqs=1) as small:
        small.gate.close()
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(small.post, URL, json={**body, "timeout_s": 0.5})
            assert small.gate.waits.wait(20)
            until_s = time.monotonic() + 0.6
            assert wait_for(lambda: time.monotonic() > until_s)
            small.gate.open()
            assert late.result().status_code == 504
        assert wait_for(lambda: small.engine.stats.queued + small.engine.stats.running == 0)
        assert small.post(URL, json=body).status_code == 200


def test_a_full_queue_refuses_the_first_wave_and_delays_the_others(demo_llm):
    body = {"input": "x", "questions": [IS] * 4, "independent": True}
    with gated_client(demo_llm, max_queue=1, max_num_seqs=1) as small:
        small.gate.close()
        with ThreadPoolExecutor(3) as pool:
            running = pool.submit(small.post, URL, json=body)
            assert small.gate.waits.wait(20)
            waiting = pool.submit(small.post, URL, json=body)
            assert wait_for(lambda: small.engine.stats.queued == 1)
            assert small.post(URL, json=body).status_code == 429
            small.gate.open()
            assert [each.result().status_code for each in (running, waiting)] == [200, 200]


def test_more_canvases_than_a_request_may_have_are_refused_with_what_helps(client):
    body = {"input": "x", "questions": [SUM] * 400, "independent": True, "orders": 3}
    error = client.post(URL, json=body).json()["error"]
    assert error["param"] == "questions"
    assert "more than 1024 canvases" in error["message"]
    assert "fewer questions or fewer orders or independent=false" in error["message"]


def test_one_question_that_is_too_long_is_told_what_helps(client):
    choices = [{"value": f"it is number {number}"} for number in range(255)]
    body = {"input": "x", "questions": [{**SUM, "choices": choices}]}
    for fields in ({}, {"independent": True}):
        error = client.post(URL, json={**body, **fields}).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "fewer or shorter values" in error["message"]
        assert "independent" not in error["message"]


def test_the_servers_context_bounds_the_canvas(demo_llm):
    settings = ServerSettings(
        models=("demo",), limits=dataclasses.replace(Limits(), max_model_len=32)
    )
    with TestClient(create_app(demo_llm, Engine(demo_llm), settings)) as small:
        reply = small.post(URL, json={"input": "x", "questions": [IS]})
    assert reply.status_code == 400
    assert "the context is 32" in reply.json()["error"]["message"]
