"""SGLang's routes as its benchmark client reads them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from served import QUESTION

import unmask

BODY = {
    "text": QUESTION,
    "sampling_params": {"temperature": 0.0, "max_new_tokens": 32, "ignore_eos": True, "steps": 4},
    "stream": False,
    "lora_path": None,
    "return_logprob": False,
    "logprob_start_len": -1,
}
"""What `bench_serving --backend sglang` sends."""


def generate(client, **change):
    response = client.post("/generate", json={**BODY, **change})
    assert response.status_code == 200, response.text
    return response.json()


def cumulative(client, **change):
    with client.stream("POST", "/generate", json={**BODY, **change, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_generate_answers_with_text_and_meta_info(client):
    reply = generate(client)
    meta = reply["meta_info"]
    assert reply["text"]
    assert meta["completion_tokens"] == 32
    assert meta["prompt_tokens"] > 0
    assert meta["finish_reason"] == {"type": "length", "length": 32}
    assert len(reply["output_ids"]) == 32


def test_a_complete_answer_says_how_it_is_repeated(client):
    complete = generate(client, sampling_params={"max_new_tokens": 32, "decoder": "threshold"})[
        "meta_info"
    ]
    assert complete["knobs"]["threshold"] == 0.9, "defaults are among the knobs in force"
    assert len(complete["model"]["weights"]) == len(complete["model"]["tokenizer"]) == 64
    assert complete["versions"]["unmask"] == unmask.__version__
    *partial, last = cumulative(client)
    assert last["meta_info"]["model"] == complete["model"]
    assert all(item["meta_info"]["model"] is None for item in partial)


def test_the_stream_is_cumulative_and_its_counts_never_fall(client):
    found = cumulative(client)
    texts = [item["text"] for item in found]
    counts = [item["meta_info"]["completion_tokens"] for item in found]
    assert all(texts), "the client divides by the tokens of a chunk"
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert counts == sorted(counts)
    assert counts[-1] == 32
    assert texts[-1] == generate(client)["text"]


def test_texts_and_token_ids_in_lists_are_answered_in_order(client, demo_llm):
    texts = ["A dog", QUESTION]
    found = generate(client, text=texts)
    assert [item["text"] for item in found] == [generate(client, text=t)["text"] for t in texts]
    ids = demo_llm.prompt_ids("A dog", raw=True)
    assert generate(client, text=None, input_ids=ids)["text"] == found[0]["text"]
    assert len(generate(client, text=None, input_ids=[ids])) == 1


def test_stop_strings_and_knobs_are_sampling_parameters(client):
    sampling = {"max_new_tokens": 48, "stop": ["\n"], "decoder": "threshold", "threshold": 0.8}
    sampling |= {"frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0, "regex": None, "n": 1}
    sampling |= {"cache": "dkv", "cache.interval": 3}
    reply = generate(client, sampling_params=sampling, rid="mine")
    assert "\n" not in reply["text"]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop"}
    assert reply["meta_info"]["id"] == "mine"
    assert reply["meta_info"]["decoder"] == "threshold(threshold=0.8)"
    assert reply["meta_info"]["cache"] == "dkv(interval=3)"


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"input_ids": [5]},
        {"text": ["a", "b"], "stream": True},
        {"return_logprob": True},
        {"lora_path": "x"},
        {"sampling_params": {"frequency_penalty": 1.0}},
        {"sampling_params": {"max_tokens": 5}},
        {"sampling_params": {"max_new_tokens": "5"}},
        {"sampling_params": {"json_schema": "[]"}},
        {"sampling_params": {"ebnf": "root ::= a"}},
        {"sampling_params": {"drafter": "/etc", "decoder": "speculative"}},
        {"sampling": {}},
        {"rid": "x" * 200},
    ],
)
def test_what_has_no_meaning_here_is_refused(client, change):
    response = client.post("/generate", json={**BODY, **change})
    assert response.status_code == 400, response.text


@pytest.mark.parametrize("path", ["/get_server_info", "/server_info"])
def test_the_accept_length_is_tokens_a_forward(client, path):
    generate(client)
    found = client.get(path).json()["internal_states"][0]["avg_spec_accept_length"]
    text = client.get("/metrics").text
    forwards = sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("unmask:request_forwards_sum")
    )
    tokens = next(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("vllm:generation_tokens_total")
    )
    assert found == pytest.approx(tokens / forwards, rel=0.05)


@pytest.mark.parametrize("path", ["/get_model_info", "/model_info"])
def test_the_front_end_language_finds_the_model(client, path):
    assert client.get(path).json()["model_path"] == "demo"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input_ids": [5] * 1000}, "max_new_tokens", "use max_new_tokens=24 or less"),
        ({"input_ids": [5] * 1024}, "input_ids", "max_new_tokens=32"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens", "=0"),
        ({"text": "a", "sampling_params": {"sampling_seed": "x"}}, "sampling_seed", "integer"),
        ({"input_ids": [-1 + (1 << 31)]}, "input_ids", "outside"),
    ],
)
def test_errors_name_what_was_sent(client, body, param, said):
    body = {"sampling_params": {"max_new_tokens": 32}, **body}
    response = client.post("/generate", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], "max_tokens" in error["message"]) == (param, False)
    assert said in error["message"]
