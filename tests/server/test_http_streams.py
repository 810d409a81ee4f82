"""Streams: their pieces are the reply, nothing is taken back, canvases are told as they are."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from served import ANSWER, CHAT, QUESTION

from unmask.server.responses import progress

CHAT_URL, COMPLETIONS, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"


def events(client, url, **body):
    """The chunks of a stream, which must end with [DONE]."""
    with client.stream("POST", url, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), (
        "SGLang's client takes every line for data"
    )
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def texts(chunks):
    return [
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
    ]


# 27
@pytest.mark.parametrize(
    ("decoder", "stop"),
    [
        ("vanilla", None),
        ("threshold", "=1"),
        ("wino", ["7\n", "\n#"]),
        ("joint_threshold", "=1"),
        ("block_diffusion", None),
        ("speculative", ["7\n", "\n#"]),
    ],
)
def test_the_pieces_are_the_text_of_the_reply(client, decoder, stop):
    body = {**CHAT, "decoder": decoder, "max_tokens": 32, "stop": stop, "seed": 3}
    if decoder in ("vanilla", "block_diffusion"):
        body["steps"] = 8
    whole = client.post(CHAT_URL, json=body).json()
    chunks = events(client, CHAT_URL, **body)
    assert "".join(texts(chunks)) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["unmask"] == whole["unmask"]


def test_more_than_one_block_comes_in_more_than_one_piece(client):
    chunks = events(client, CHAT_URL, **CHAT, block_length=8)
    assert len([text for text in texts(chunks) if text]) >= 2
    assert "".join(texts(chunks)) == ANSWER


def test_only_the_last_chunk_may_be_without_text(client):
    for url, body in ((CHAT_URL, CHAT), (COMPLETIONS, {"prompt": "A dog", "max_tokens": 8})):
        *pieces, last = events(client, url, **body)
        assert all(texts([chunk])[0] for chunk in pieces)
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in pieces)
        assert last["choices"][0]["finish_reason"] is not None


def test_the_role_comes_first_and_once(client):
    deltas = [chunk["choices"][0]["delta"] for chunk in events(client, CHAT_URL, **CHAT)]
    assert deltas[0]["role"] == "assistant"
    assert not any("role" in delta for delta in deltas[1:])


def test_the_usage_comes_in_a_chunk_of_its_own_when_asked_for(client):
    whole = client.post(CHAT_URL, json=CHAT).json()
    chunks = events(client, CHAT_URL, **CHAT, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert not any("usage" in chunk for chunk in chunks[:-1])
    assert not any("usage" in chunk for chunk in events(client, CHAT_URL, **CHAT))


@pytest.mark.parametrize("mode", ["text", "canvas"])
def test_continuous_usage_is_in_every_chunk_and_never_falls(client, mode):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(client, CHAT_URL, **CHAT, stream_options=options, stream_mode=mode)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    computed = [chunk["usage"]["num_queries"] for chunk in chunks]
    assert computed == sorted(computed)
    assert 0 < chunks[-1]["usage"]["num_wasted"] < computed[-1]


def test_log_probabilities_come_with_the_text_once_each(client):
    chunks = events(client, CHAT_URL, **CHAT, logprobs=True)
    whole = client.post(CHAT_URL, json={**CHAT, "logprobs": True}).json()
    told = [item for c in chunks for item in c["choices"][0]["logprobs"]["content"]]
    assert told == whole["choices"][0]["logprobs"]["content"]


def test_text_offsets_go_on_from_chunk_to_chunk(client):
    body = {"prompt": QUESTION, "max_tokens": 32, "logprobs": 0, "block_length": 4}
    chunks = events(client, COMPLETIONS, **body)
    told = [at for c in chunks for at in c["choices"][0]["logprobs"]["text_offset"]]
    whole = client.post(COMPLETIONS, json=body).json()
    assert sum(bool(c["choices"][0]["logprobs"]["tokens"]) for c in chunks) > 1
    assert told == whole["choices"][0]["logprobs"]["text_offset"]


def test_several_answers_come_interleaved_and_each_is_whole(client):
    body = {"prompt": ["A dog", "3*4="], "max_tokens": 8, "n": 2, "decoder": "threshold"}
    whole = client.post(COMPLETIONS, json=body).json()
    chunks = events(client, COMPLETIONS, **body)
    for choice in whole["choices"]:
        own = [c for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(texts(own)) == choice["text"]
        assert own[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_an_infill_streams_from_the_left(client):
    body = {"parts": ["The cat ", 3, " on the ", 2, "."], "decoder": "threshold"}
    whole = client.post(INFILL, json=body).json()["choices"][0]
    chunks = events(client, INFILL, **body)
    assert "".join(texts(chunks)) == whole["text"]
    assert chunks[-1]["choices"][0]["blanks"] == whole["blanks"]


@pytest.mark.parametrize("typed", ["The cat ", "a <|startoftext|> b "])
def test_a_canvas_of_an_infill_is_without_the_token_that_opens_its_text(client, typed):
    body = {"parts": [typed, 2, "."], "decoder": "threshold"}
    chunks = events(client, INFILL, stream_mode="canvas", **body)
    frames = [c["choices"][0]["canvas"] for c in chunks if "canvas" in c["choices"][0]]
    assert len(frames) > 1
    for frame in frames:
        assert frame["text"].startswith(typed.rstrip()), "what is typed is there"
        assert [i for i, position in enumerate(frame["slots"]) if "special" in position] == [0]


# 16
def test_a_stream_never_holds_half_a_character(client):
    body = {"prompt": "a \U0001f642 b \U0001f642 c", "suffix": " \U0001f642", "temperature": 5.0}
    for seed in range(2):
        body |= {"seed": seed, "max_tokens": 12, "decoder": "vanilla", "steps": 4}
        whole = client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
        pieces = texts(events(client, COMPLETIONS, **body))
        assert "".join(pieces) == whole


def test_a_canvas_stream_tells_every_forward(client):
    body = {**CHAT, "decoder": "vanilla", "steps": 8, "max_tokens": 16}
    chunks = events(client, CHAT_URL, **body, stream_mode="canvas")
    frames = [c["choices"][0]["canvas"] for c in chunks if "canvas" in c["choices"][0]]
    assert frames[0]["forward"] == 0
    assert all(position["open"] for position in frames[0]["slots"])
    assert len(frames[0]["slots"]) == 16
    numbers = [frame["forward"] for frame in frames]
    assert numbers == list(range(len(numbers))), "every forward has one frame"
    assert frames[-1]["num_open"] == 0
    for before, after in pairwise(frames):
        new = [i for i, position in enumerate(after["slots"]) if position["new"]]
        opened = [i for i, position in enumerate(before["slots"]) if position["open"]]
        closed = [i for i in opened if not after["slots"][i]["open"]]
        assert new == closed
        assert all(0 <= after["slots"][i]["confidence"] <= 1 for i in new)
    assert chunks[-1]["choices"][0]["delta"]["content"] == frames[-1]["text"]


def test_a_canvas_stream_shows_what_is_taken_back(client):
    body = {**CHAT, "decoder": "wino", "wide_in_thres": 0.2, "max_tokens": 32}
    body["messages"] = [{"role": "user", "content": "Sudoku\n0000\n4300\n3401\n0004"}]
    chunks = events(client, CHAT_URL, **body, stream_mode="canvas")
    frames = [c["choices"][0]["canvas"] for c in chunks if "canvas" in c["choices"][0]]
    taken = [
        position for frame in frames for position in frame["slots"] if position.get("taken_back")
    ]
    assert taken
    assert all(position["open"] and position["token"] is None for position in taken)


def test_diffusing_is_the_canvas_as_mercury_streams_it(client):
    chunks = events(client, CHAT_URL, **CHAT, diffusing=True)
    contents = [c["choices"][0]["delta"]["content"] for c in chunks]
    assert set(contents[0]) == {"\u2591"}
    assert contents[-1] == ANSWER
    metas = [c["diffusion_meta"] for c in chunks]
    assert all(meta["diffusion_content"] for meta in metas), "each content replaces the one before"
    shares = [meta["diffusion_progress"] for meta in metas]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    plain = events(client, CHAT_URL, **CHAT, stream_mode="canvas")
    assert not [c for c in plain if "diffusion_meta" in c], "a field of Mercury's alone"


def test_diffusion_is_not_complete_while_tokens_may_change():
    full = {"slots": [{}] * 4, "num_open": 0, "num_settled": 2}
    assert progress(full) == 0.75
    assert progress(full | {"num_settled": 4}) == 1.0
    assert progress(full | {"num_open": 3}) == 0.25


def test_diffusing_changes_nothing_without_a_stream(client):
    reply = client.post(CHAT_URL, json={**CHAT, "diffusing": True, "stop": "zzz"})
    assert reply.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    "body",
    [
        {"stream_mode": "canvas", "stream": False},
        {"stream_options": {"include_usage": True}, "stream": False},
        {"stream_mode": "canvas", "stop": "x"},
        {"stream_options": {"include_usages": True}},
        {"diffusing": True, "stop": "x"},
    ],
)
def test_stream_options_without_effect_are_refused(client, body):
    assert client.post(CHAT_URL, json={**CHAT, "stream": True, **body}).status_code == 400
