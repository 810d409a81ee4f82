"""Log-probabilities of the likeliest and of named tokens, over HTTP and in the reading."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from served import CHAT

from unmask.canvas import Ask
from unmask.sampling.params import SamplingParams
from unmask.sampling.rng import row_keys
from unmask.sampling.sampler import STATS, Span, Vocabulary, propose

CHAT_URL = "/v1/chat/completions"
LOGPROBS = {"max_tokens": 12, "decoder": "threshold", "seed": 0, "logprobs": True}


def choice(client, url=CHAT_URL, **fields):
    base = {"prompt": "2 + 2 ="} if url.endswith("/completions") and "chat" not in url else CHAT
    reply = client.post(url, json={**base, **LOGPROBS, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def test_the_likeliest_tokens_are_those_of_the_softmax():
    torch.manual_seed(0)
    logits, size = torch.randn(3, 9), 9
    vocabulary = Vocabulary(torch.arange(size), torch.tensor([8]), 7, None)
    ask = Ask(np.arange(3), (0, 3), num_top=4, named=(8, 2))
    span = Span(np.arange(3), SamplingParams(), ask)
    keys = row_keys(0, 0, np.arange(3))
    packed, _ = propose(logits.clone(), [span], keys, vocabulary)
    first, expected = 2 + len(STATS), logits.log_softmax(dim=-1)
    assert packed.shape[1] == first + 12
    order = expected[:, :8].argsort(dim=-1, descending=True)[:, :4]  # token 8 is never proposed
    assert packed[:, first : first + 4].long().tolist() == order.tolist()
    named = torch.tensor([[8, 2]] * 3)
    assert packed[:, first + 4 : first + 6].long().tolist() == named.tolist()
    both = expected.gather(1, torch.cat((order, named), dim=1))
    assert torch.allclose(packed[:, first + 6 :].float(), both, atol=1e-6)


def test_each_token_comes_with_the_likeliest_in_order(client):
    content = choice(client, top_logprobs=5)["logprobs"]["content"]
    assert content
    for item in content:
        top = item["top_logprobs"]
        values = [each["logprob"] for each in top]
        assert len(top) == 5
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001
        assert top[0]["token"] == item["token"]  # greedy
        assert top[0]["logprob"] == pytest.approx(item["logprob"], abs=1e-4)
        assert bytes(top[0]["bytes"]).decode(errors="replace") == top[0]["token"]


def test_bytes_join_to_the_text(client):
    found = choice(client, max_tokens=24, top_logprobs=1)
    data = b"".join(bytes(item["bytes"]) for item in found["logprobs"]["content"])
    assert data.decode() == found["message"]["content"]


def test_a_text_completion_has_a_mapping_per_token(client):
    found = choice(client, "/v1/completions", logprobs=3)
    top = found["logprobs"]["top_logprobs"]
    assert len(top) == len(found["logprobs"]["tokens"])
    for token, each in zip(found["logprobs"]["tokens"], top, strict=True):
        assert token in each
        assert len(each) <= 3


def test_named_tokens_are_returned_with_each_token(client, demo_llm):
    yes, no = (demo_llm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "57")
    names = {demo_llm.tokenizer.decode([id_]) for id_ in (yes, no)}
    for item in choice(client, logprob_token_ids=[yes, no, yes])["logprobs"]["content"]:
        assert {each["token"] for each in item["top_logprobs"]} == names


def test_the_likeliest_tokens_of_a_constrained_answer_are_allowed_where_it_matters(client):
    body = {"guided_regex": "[xyz]{4}", "top_logprobs": 2, "temperature": 1.0}
    found = choice(client, **body)
    assert len(found["message"]["content"]) == 4
    assert all(len(item["top_logprobs"]) == 2 for item in found["logprobs"]["content"])


def test_no_answer_changes_by_its_log_probabilities(client):
    plain = choice(client, temperature=0.7)["message"]
    assert choice(client, temperature=0.7, top_logprobs=20)["message"] == plain


JOINT = {"decoder": "joint_threshold", "max_tokens": 24, "return_step_map": True}


def replaced_tokens(found, start):
    """Return (index, forward) of the answer's tokens that a forward of the trace replaced."""
    forwards = found["step_map"]["forwards"]
    return [
        (at, forward)
        for at, forward in enumerate(forwards)
        if start + at in [item[0] for item in found["trace"][forward - 1]["replaced"]]
    ]


@pytest.mark.parametrize("num_top", [0, 2])
def test_a_replaced_token_has_its_probability_in_the_forward_that_replaced_it(
    client, demo_llm, num_top
):
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    start = len(demo_llm.chat_ids(messages))
    fields = {"messages": messages, "return_trace": True, "trace_alternatives": 1}
    found = choice(client, **JOINT, **fields, top_logprobs=num_top)
    content, replaced = found["logprobs"]["content"], replaced_tokens(found, start)
    assert replaced
    for at, forward in replaced:
        ((token, share, _),) = found["trace"][forward - 1]["alternatives"][str(start + at)]
        assert token == found["step_map"]["token_ids"][at]
        assert math.exp(content[at]["logprob"]) == pytest.approx(share, rel=1e-5)
        assert math.exp(found["step_map"]["logprobs"][at]) == pytest.approx(share, rel=1e-5)
    assert all(len(item["top_logprobs"]) == num_top for item in content)
    assert all(-9999 < item["logprob"] <= 0 for item in content)


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
def test_the_openai_sdk_reads_the_numbers_of_replaced_and_drafted_tokens(client, url):
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    turn = {"messages": [{"role": "user", "content": "What is 2 + 3?"}]}
    base = {"prompt": "2 + 2 =", "logprobs": 2} if url == "/v1/completions" else {**turn}
    for fields in ({}, {"draft": "Then: 3+2=6", "pinned": ["3+2="]}):
        body = {**LOGPROBS, "decoder": "joint_threshold", "max_tokens": 24, **base, **fields}
        reply = client.post(url, json=body).json()
        kind = Completion if url == "/v1/completions" else ChatCompletion
        (found,) = kind.model_validate(reply).choices
        numbers = (
            found.logprobs.token_logprobs
            if url == "/v1/completions"
            else [item.logprob for item in found.logprobs.content]
        )
        assert numbers
        assert all(isinstance(number, float) and number <= 0 for number in numbers)
        assert (-9999.0 in numbers) == bool(fields)


def test_a_canvas_stream_has_the_confidence_of_replaced_tokens(client):
    import json

    body = {**CHAT, "decoder": "joint_threshold", "max_tokens": 24}
    body |= {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "seed": 0}
    frames = []
    with client.stream(
        "POST", CHAT_URL, json={**body, "stream": True, "stream_mode": "canvas"}
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                frames += [each.get("canvas") for each in json.loads(line[6:])["choices"]]
    frames = [frame for frame in frames if frame is not None]
    pairs = zip(frames, frames[1:], strict=False)
    slots = [pair for old, new in pairs for pair in zip(old["slots"], new["slots"], strict=False)]
    changed = [new for old, new in slots if new["new"] and not old["open"]]
    assert changed
    assert all(0.9 < slot["confidence"] <= 1 for slot in changed)  # above edit_threshold


def test_a_probability_is_found_by_position_and_token():
    from unmask.canvas import Reading
    from unmask.server.canvas_frames import probability_in

    reading = Reading(
        positions=np.array([3, 5]),
        tokens=np.array([7, 8]),
        log_odds=np.array([0.0, -np.inf]),
        uniform=np.zeros(2),
        top_tokens=np.array([[7, 9], [8, 4]]),
        top_log_probs=np.log([[0.5, 0.25], [0.125, 0.5]]),
    )
    assert probability_in(reading, 3, 7) == 0.5
    assert probability_in(reading, 3, 9) == pytest.approx(0.25)
    assert probability_in(reading, 5, 8) == 0.0
    assert [probability_in(reading, at, 1) for at in (3, 4, 6)] == [None] * 3


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"top_logprobs": 3, "logprobs": False}, "needs logprobs"),
        ({"top_logprobs": 21}, "20"),
        ({"logprob_token_ids": [1], "logprobs": None}, "needs logprobs"),
        ({"logprob_token_ids": [1 << 20]}, "vocabulary"),
    ],
)
def test_what_has_no_place_is_refused(client, fields, word):
    reply = client.post(CHAT_URL, json={**CHAT, **LOGPROBS, **fields})
    assert reply.status_code == 400
    assert word in reply.json()["error"]["message"]
