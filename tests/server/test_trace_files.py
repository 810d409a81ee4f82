"""Traces over HTTP: alternatives of each commit, and files that `unmask replay` reads."""

from __future__ import annotations

import json

import pytest
from served import CHAT

import unmask

CHAT_URL = "/v1/chat/completions"
SHORT = {**CHAT, "max_tokens": 24, "decoder": "threshold"}


def choice(client, url=CHAT_URL, **fields):
    reply = client.post(url, json=fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def chunks(client, url=CHAT_URL, **fields):
    reply = client.post(url, json={**fields, "stream": True})
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line)["choices"][0] for line in lines]


def write(path, found) -> None:
    """Write a trace file as the documentation of `trace_header` says."""
    lines = [found["trace_header"]]
    lines += [{"step": number, **step} for number, step in enumerate(found["trace"])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("decoder", ["threshold", "block_diffusion", "wino"])
def test_a_trace_with_its_header_is_a_file_that_replays(client, demo_llm, decoder, tmp_path):
    options = {"return_trace": True, "trace_alternatives": 2}
    body = {**SHORT, "decoder": decoder, "stream_mode": "canvas", "trace_header": True, **options}
    *_, last = chunks(client, **body)
    write(tmp_path / "t.jsonl", last)
    own = demo_llm.chat(CHAT["messages"], decoder, gen_length=24, **options)
    film, expected = unmask.read_film(tmp_path / "t.jsonl"), own.film()
    assert film.prompt == expected.prompt
    assert film.title == expected.title
    for frame, other in zip(film.frames, expected.frames, strict=True):
        assert [cell.text for cell in frame.cells] == [cell.text for cell in other.cells]
    written = [cell.written for cell in film.frames[-1].cells if cell.written is not None]
    assert any(token.likeliest for token in written)


def test_an_infill_replays_with_its_fixed_text(client, tmp_path):
    body = {"parts": ["The ", 3, " sat."], "return_trace": True, "trace_header": True}
    found = choice(client, "/v1/infill", **body)
    write(tmp_path / "t.jsonl", found)
    cells = unmask.read_film(tmp_path / "t.jsonl").frames[-1].cells
    assert "".join(cell.text for cell in cells) == found["text"]


def test_without_the_fields_a_trace_is_as_before(client):
    plain = choice(client, **SHORT, return_trace=True)
    rich = choice(client, **SHORT, return_trace=True, trace_alternatives=3, trace_header=True)
    assert "trace_header" not in plain
    for step in rich["trace"]:
        decided = {str(item[0]) for item in step["committed"]}
        assert set(step.pop("alternatives")) == decided
        step.pop("bytes", None)
    assert rich["trace"] == plain["trace"]


def test_new_tokens_of_a_canvas_have_their_alternatives(client):
    frames = [
        c["canvas"]
        for c in chunks(client, **SHORT, stream_mode="canvas", trace_alternatives=3)
        if "canvas" in c
    ]
    slots = [slot for frame in frames for slot in frame["slots"]]
    new = [slot for slot in slots if slot["new"]]
    assert new
    for slot in new:
        (text, share), *_ = slot["alternatives"]
        assert text == slot["text"] or "\ufffd" in text
        assert share == pytest.approx(slot["confidence"], abs=1e-4)
        assert len(slot["alternatives"]) == 3
    assert not any("alternatives" in slot for slot in slots if not slot["new"])


def test_alternatives_and_log_probabilities_have_their_own_numbers(client):
    fields = {"logprobs": True, "top_logprobs": 2, "logprob_token_ids": [5]}
    plain = choice(client, **SHORT, **fields)
    rich = choice(client, **SHORT, **fields, return_trace=True, trace_alternatives=4)
    assert rich["logprobs"] == plain["logprobs"]
    assert {len(p) for step in rich["trace"] for p in step["alternatives"].values()} == {4}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"trace_alternatives": 2}, "trace_alternatives needs return_trace"),
        ({"trace_header": True}, "trace_header needs return_trace"),
        ({"trace_alternatives": 21, "return_trace": True}, "trace_alternatives"),
        ({"trace_alternatives": -1, "return_trace": True}, "trace_alternatives"),
    ],
)
def test_a_field_without_effect_or_out_of_range_is_refused(client, fields, problem):
    reply = client.post(CHAT_URL, json={**SHORT, **fields})
    assert reply.status_code == 400
    assert problem in reply.json()["error"]["message"]
