"""Whatever fits the server's own OpenAPI document, or nearly, is answered as that document says."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served import serving

from unmask import caches, decoders

pytestmark = pytest.mark.slow
schemathesis = pytest.importorskip("schemathesis", reason="the schema is tried with schemathesis")

TAKEN = {
    "decoder": st.sampled_from([None, *decoders.names()]),
    "cache": st.sampled_from([None, *(n for n in caches.names() if n != "block_causal")]),
    "model": st.sampled_from([None, "demo"]),
    "max_tokens": st.integers(1, 9),
    "max_completion_tokens": st.just(None),
    "steps": st.just(None),
    "block_length": st.just(None),
    "preset": st.just(None),
    "decoder_args": st.sampled_from([None, {}]),
    "cache_args": st.sampled_from([None, {}]),
    "timeout_s": st.just(60),
    "top_p": st.just(None),
    "top_k": st.just(None),
    "parts": st.sampled_from([["The ", 3, " sat."], [1], [2, "<|mdm_mask|>\u00e9", 1]]),
    "prompt": st.sampled_from(["A dog", ["a", "b"], [5, 6], [[5], [6, 7]]]),
    "input": st.sampled_from(["A dog", [{"role": "user", "content": "A dog"}]]),
    "max_output_tokens": st.integers(1, 9),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": st.text(min_size=1)}),
        min_size=1,
        max_size=3,
    ),
    "sampling_params": st.fixed_dictionaries(
        {"max_new_tokens": st.integers(1, 9)},
        optional={
            "temperature": st.floats(0, 9),
            "n": st.integers(1, 3),
            "stop": st.text(max_size=3),
        },
    ),
    "text": st.sampled_from(["a", ["a", "b"], "\u00e9\n"]),
    "n": st.integers(1, 3),
}
"""What a free text or number must be to name something that is there, and to be answered soon."""


DECODING = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/infill",
    "/generate",
    "/v1/fim/completions",
    "/v1/responses",
]
TOKENIZING = ["/tokenize", "/detokenize"]
DECIDING = ["/v1/decisions", "/v1/systemone"]
CONTROLLING = ["/update_weights"]
FACTS = [
    *("/v1/models", "/v1/models/{name}", "/v1/schema", "/health", "/metrics", "/ready", "/version"),
    *("/server_info", "/get_server_info", "/model_info", "/get_model_info"),
]
CONFORMANCE = ["status_code", "content_type", "response_schema"]


@pytest.fixture(scope="module")
def served(demo_llm):
    with serving(demo_llm, max_queue=1000) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json", wait_for_schema=5)
        assert live.idle()
        assert live.engine.failure is None


def check(case, seen):
    """Send a case; what comes back must be as documented."""
    response = case.call(timeout=120)
    seen[response.status_code] += 1
    is_late = response.status_code == 504 and case.body["timeout_s"] < 1  # counted from arrival
    assert response.status_code < 500 or is_late, response.text
    if response.headers["content-type"][0].startswith("text/event-stream"):
        check_stream(response.text)
        return
    named = schemathesis.checks.CHECKS.get_by_names([f"{name}_conformance" for name in CONFORMANCE])
    assert len(named) == len(CONFORMANCE)
    case.validate_response(response, checks=named)


def check_stream(text):
    lines = [line for line in text.split("\n") if line]
    if lines[0].startswith("event: "):  # typed events, each with its name
        assert lines[-2] in ("event: response.completed", "event: response.incomplete")
        return
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert not any("error" in json.loads(line[6:]) for line in lines[:-1])


def several(num):
    return settings(
        max_examples=num, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )


def test_every_route_of_the_document_is_tried(served):
    assert set(served.raw_schema["paths"]) == {
        *DECODING,
        *TOKENIZING,
        *DECIDING,
        *CONTROLLING,
        *FACTS,
    }


@pytest.mark.parametrize("path", FACTS)
def test_a_route_that_tells_facts_tells_them_as_documented(served, path):
    seen = Counter()

    @several(40)
    @given(case=served[path]["GET"].as_strategy())
    def run(case):
        check(case, seen)

    run()
    assert sum(seen.values()) == (40 if "{" in path else 1)


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize("path", DECODING)
def test_whatever_is_sent_the_answer_is_one_of_the_documented(served, path, is_valid):
    mode, seen = schemathesis.GenerationMode, Counter()
    chosen = mode.POSITIVE if is_valid else mode.NEGATIVE

    @several(100)
    @given(case=served[path]["POST"].as_strategy(generation_mode=chosen))
    def run(case):
        if is_valid:  # many answers of many tokens take minutes
            case.body |= {key: 1 for key in ("n", "max_tokens") if key in case.body}
        check(case, seen)

    run()
    assert seen[400] > 50


@pytest.mark.parametrize("path", [*DECIDING, *CONTROLLING])
def test_whatever_is_asked_the_answer_is_one_of_the_documented(served, path):
    seen = Counter()

    @several(40)
    @given(case=served[path]["POST"].as_strategy())
    def run(case):
        check(case, seen)

    run()
    assert sum(seen.values()) == 40


@pytest.mark.parametrize("path", DECODING)
def test_what_names_things_that_are_there_is_answered_as_documented(served, path):
    operation, seen = served[path]["POST"], Counter()
    known = fields_of(served, path)

    @several(100)
    @given(case=operation.as_strategy(), data=st.data())
    def run(case, data):
        body = {key: value for key, value in case.body.items() if key in known}
        needed = {
            "prompt",
            "input",
            "max_output_tokens",
            "parts",
            "messages",
            "max_tokens",
            "text",
            "sampling_params",
        } & known
        for key in sorted((known & TAKEN.keys()) & (needed | body.keys())):
            body[key] = data.draw(TAKEN[key])
        for key in ("max_tokens", "stop", "ignore_eos") if "parts" in known else ():
            body.pop(key, None)
        body.pop("input_ids", None)
        for key in (
            ("n", "stream_mode", "return_trace", "text", "max_tokens") if "input" in known else ()
        ):
            body.pop(key, None)
        case.body = body
        check(case, seen)

    run()
    assert seen[200] >= 30, seen


def fields_of(schema, path):
    body = schema.raw_schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = body["schema"]["$ref"].rpartition("/")[2]
    return set(schema.raw_schema["components"]["schemas"][name]["properties"])
