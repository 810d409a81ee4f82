"""No knob that a client can send ends the engine, or takes it for longer than a request may."""

from __future__ import annotations

import pytest

VALUES = {
    "int": [0, -1, 1, 2**31, 2**62, -(2**63)],
    "float": [0, -1, 1, 0.5, 1e-300, 1e300, -1e300],
    "bool": [True, False],
    "str": ["", "x", "cadllm", "threshold(threshold=0)"],
    "choice": ["x"],
    "list": [[], [0], [1e300] * 64, [-1.0]],
    "object": [{}, {"0": 1}, {"0": 1e300}, {"9": 1}, {"-1": 1}, {"x": 1}, {"0": "So"}],
}
DANGEROUS = [
    {"decoder": "credit", "credit_alpha": 1e300},
    {"decoder": "threshold", "cfg_scale": 1e300},
    {"decoder": "threshold", "temperature": 1e300},
    {"decoder": "threshold", "temperature": 1e-300},
    {"decoder": "threshold", "temperature": 0.5, "top_p": 1e-300},
    {"decoder": "threshold", "temperature": 0.5, "top_k": 2**62},
    {"decoder": "threshold", "vocabulary": "static", "vocab_size": 2**62},
    {"decoder": "joint_threshold", "penalty_lambda": 1e300},
    {"decoder": "joint_threshold", "max_post_edit_steps": 2**62, "edit_threshold": 0},
]


def check(client, knobs):
    body = {"prompt": "A dog", "max_tokens": 8, "timeout_s": 5, **knobs}
    response = client.post("/v1/completions", json=body)
    assert response.status_code in (200, 400, 500, 504), (knobs, response.text)
    assert client.get("/health").status_code == 200, knobs


@pytest.mark.parametrize("knobs", DANGEROUS, ids=lambda knobs: list(knobs)[-1])
def test_a_dangerous_knob_ends_no_more_than_its_request(client, knobs):
    check(client, knobs)


@pytest.mark.slow
def test_no_knob_at_an_extreme_ends_the_engine(client):
    schema = client.get("/v1/schema").json()
    for decoder in schema["decoders"]:
        shared = schema["shared"] if decoder["name"] == "threshold" else []
        for knob in [*decoder["knobs"], *shared]:
            for value in [*VALUES[knob["type"]], *knob.get("choices", []), None]:
                check(client, {"decoder": decoder["name"], knob["name"]: value})
    for cache in schema["caches"]:
        for knob in cache["knobs"]:
            for value in [*VALUES[knob["type"]], *knob.get("choices", [])]:
                args = {knob["name"]: value}
                check(client, {"decoder": "threshold", "cache": cache["name"], "cache_args": args})
