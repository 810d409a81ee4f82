"""Drafts and pins over HTTP: every route that decodes, and what it refuses."""

from __future__ import annotations

import json

import pytest
from served import CHAT

TEXT = "Then: 7+5=13\n#### 13"
PINS = ["Then", "####"]
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Anna has 7 eggs and buys 5."},
    "/v1/fim/completions": {"prompt": "Anna has", "suffix": " eggs."},
    "/v1/infill": {"parts": ["Anna has ", 24, " eggs."]},
    "/v1/responses": {"input": "Anna has 7 eggs and buys 5."},
}
WINO = {"decoder": "wino", "seed": 1}


def texts_of(reply):
    assert reply.status_code == 200, reply.text
    body = reply.json()
    if "output" in body:
        return [part["text"] for item in body["output"] for part in item["content"]]
    if "blanks" in body["choices"][0]:
        return [choice["blanks"][0] for choice in body["choices"]]
    return [
        choice["message"]["content"] if "message" in choice else choice["text"]
        for choice in body["choices"]
    ]


def refused(client, url="/v1/chat/completions", **fields):
    reply = client.post(url, json={**ROUTES[url], **WINO, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize("url", ROUTES)
def test_every_route_takes_a_draft_and_keeps_it_without_edits(client, url):
    reply = client.post(url, json={**ROUTES[url], **WINO, "draft": TEXT, "max_edits": 0})
    (text,) = texts_of(reply)
    assert text.startswith(TEXT)
    assert url == "/v1/infill" or text == TEXT  # its length is that of the draft


def test_sglangs_route_takes_a_draft_among_its_sampling_params(client, demo_llm):
    def generate(text, **fields):
        params = {"decoder": "wino", "sampling_seed": 1, **fields}
        return client.post("/generate", json={"text": text, "sampling_params": params})

    reply = generate("Anna has", draft=TEXT, max_edits=0)
    assert (reply.status_code, reply.json()["text"]) == (200, TEXT)
    ids = demo_llm.prompts.encode(TEXT, special=False)
    xargs = {"diffusion_seed_canvas": ids, "diffusion_pinned": [0]}
    assert generate("Anna has", vllm_xargs=xargs, max_edits=0).json()["text"] == TEXT
    found = generate(["One", "Two"], draft=["7+5=12", "8"], max_edits=0).json()
    assert [each["text"] for each in found] == ["7+5=12", "8"]
    ours = client.post(
        "/v1/completions", json={"prompt": "One", **WINO, "draft": TEXT, "pinned": PINS}
    )
    theirs = generate("One", draft=TEXT, pinned=PINS)
    assert theirs.json()["text"] == texts_of(ours)[0]
    error = generate("One", draft=TEXT, pinned=["no such"]).json()["error"]
    assert (error["param"], "not in the draft" in error["message"]) == ("pinned", True)
    error = generate("One", draft="a" * 8001).json()["error"]
    assert (error["param"], "use a draft of" in error["message"]) == ("draft", True)


@pytest.mark.parametrize("url", ROUTES)
def test_a_pinned_part_stays_on_every_route(client, url):
    fields = {"draft": TEXT, "pinned": PINS, "narrow_out_thres": 1.0, "temperature": 1.5}
    for seed in range(2):
        body = {**ROUTES[url], **WINO, **fields, "seed": seed}
        if url == "/v1/infill":
            body["pinned"] = ["Then"]
            reply = client.post(url, json=body)
            assert reply.json()["choices"][0]["text"].startswith("Anna hasThen")
            continue
        (text,) = texts_of(client.post(url, json={**body, "ignore_eos": True}))
        assert text.startswith("Then")
        assert "####" in text


def test_a_wrong_answer_is_mended_and_a_pinned_one_is_not(client):
    body = {**CHAT, "decoder": "joint_threshold", "draft": TEXT}
    (mended,) = texts_of(client.post("/v1/chat/completions", json=body))
    assert mended != TEXT
    (held,) = texts_of(client.post("/v1/chat/completions", json={**body, "pinned": ["13"]}))
    assert held.count("13") == 2


def test_every_prompt_has_its_draft_and_every_choice_the_same(client):
    body = {"prompt": ["One", "Two"], **WINO, "max_edits": 0, "n": 2}
    found = texts_of(client.post("/v1/completions", json={**body, "draft": ["7+5=12", "8"]}))
    assert found == ["7+5=12"] * 2 + ["8"] * 2
    found = texts_of(client.post("/v1/completions", json={**body, "draft": "7+5"}))
    assert found == ["7+5"] * 4
    for draft in (["7+5"], ["7", "8", None]):
        param, message = refused(client, "/v1/completions", prompt=["One", "Two"], draft=draft)
        assert (param, "for 2 prompts" in message) == ("draft", True)


def test_max_tokens_leaves_room_behind_a_draft_or_is_too_short(client):
    fields = {"draft": "Then: 7", "narrow_out_thres": 0.0, "max_tokens": 24, "ignore_eos": True}
    reply = client.post("/v1/chat/completions", json={**CHAT, **WINO, **fields})
    (text,) = texts_of(reply)
    assert text.startswith("Then: 7")
    assert reply.json()["usage"]["completion_tokens"] == 24
    _, message = refused(client, draft=TEXT, max_tokens=3)
    assert "the answer has 3 positions" in message


def test_a_stream_of_a_draft_joins_to_it_and_a_canvas_begins_as_it(client):
    body = {**CHAT, **WINO, "draft": TEXT, "max_edits": 0, "stream": True}
    pieces, canvases = [], []
    for mode, found in (("text", pieces), ("canvas", canvases)):
        with client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream_mode": mode}
        ) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    found.append(json.loads(line[6:]))
    told = [chunk["choices"][0]["delta"].get("content") or "" for chunk in pieces]
    assert "".join(told) == TEXT
    assert json.dumps(TEXT)[1:-1] in json.dumps(canvases[0]) or "Then" in json.dumps(canvases[0])


def test_tokens_of_a_draft_have_no_probability_and_no_forward(client):
    fields = {"draft": TEXT, "max_edits": 0, "logprobs": True, "return_step_map": True}
    reply = client.post("/v1/chat/completions", json={**CHAT, **WINO, **fields})
    (choice,) = reply.json()["choices"]
    assert choice["message"]["content"] == TEXT
    assert all(item["logprob"] == -9999.0 for item in choice["logprobs"]["content"])
    assert set(choice["step_map"]["logprobs"]) == set(choice["step_map"]["forwards"]) == {None}


def test_vllms_spelling_of_a_draft_is_the_same(client, demo_llm):
    ids = demo_llm.prompts.encode(TEXT, special=False)
    ours = {"draft": ids, "pinned": [[0, 1], [3, 4]], "max_tokens": len(ids) + 8}
    theirs = {
        "vllm_xargs": {"diffusion_seed_canvas": ids, "diffusion_pinned": [0, 3]},
        "max_tokens": len(ids) + 8,
    }
    found = [
        texts_of(client.post("/v1/completions", json={"prompt": "One", **WINO, **fields}))
        for fields in (ours, theirs)
    ]
    assert found[0] == found[1]
    mask = demo_llm.spec.mask_id
    template = {
        "diffusion_seed_canvas": [ids[0], mask, mask, ids[3]],
        "diffusion_pinned": [0, 3],
    }
    body = {"prompt": "One", "decoder": "vanilla", "vllm_xargs": template, "return_trace": True}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    for xargs, says in (
        ({"diffusion_read_only": True}, "diffusion_read_only is not supported"),
        ({"diffusion_seed_canvas": [1.5]}, "list of whole numbers"),
        ({"diffusion_seed_canvas": "1"}, "list of whole numbers"),
        ({"diffusion_pinned": [0]}, "no effect without draft"),
        ({"diffusion_seed_canvas": [5], "diffusion_pinned": [1]}, "the draft has 1 positions"),
    ):
        assert says in refused(client, vllm_xargs=xargs)[1]
    assert "two drafts" in refused(client, draft="a", vllm_xargs={"diffusion_seed_canvas": [1]})[1]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"draft": TEXT, "decoder": "vanilla"}, "draft", "never changes a decided token"),
        ({"draft": TEXT, "decoder": "daedal"}, "draft", "lets it grow"),
        ({"draft": TEXT, "pinned": ["no such"]}, "pinned", "not in the draft"),
        ({"draft": TEXT, "pinned": [[5, 3]]}, "pinned", "start must be below"),
        ({"draft": TEXT, "pinned": [[0, 99]]}, "pinned", "the draft has 20 characters"),
        (
            {"draft": TEXT, "pinned": [[0, 20]], "max_tokens": None},
            "pinned",
            "all positions of the answer are pinned",
        ),
        ({"draft": TEXT, "max_tokens": 3}, "draft", "but the answer has 3 positions"),
        ({"draft": "a" * 8001, "max_tokens": None}, "draft", "use a draft of "),
        (
            {"vllm_xargs": {"diffusion_seed_canvas": [5] * 8001}, "max_tokens": None},
            "vllm_xargs",
            "tokens + a draft of 8001 = ",
        ),
        (
            {"vllm_xargs": {"diffusion_seed_canvas": [5], "diffusion_pinned": [1]}},
            "vllm_xargs",
            "1 positions",
        ),
        (
            {"vllm_xargs": {"diffusion_seed_canvas": [5]}, "pinned": [[0, 2]]},
            "pinned",
            "1 positions",
        ),
        (
            {"draft": TEXT, "guided_json": {"type": "null"}, "max_edits": 0},
            "max_edits",
            "breaks the constraint",
        ),
        ({"draft": ""}, "draft", "at least 1"),
        ({"draft": {"a": 1}}, "draft", "draft"),
        ({"draft": TEXT, "max_edits": -1}, "max_edits", "greater than or equal to 0"),
        ({"max_edits": 3}, "max_edits", "no effect without draft"),
        ({"max_edits": 0}, "max_edits", "no effect without draft"),
        ({"max_edits": 0, "pinned": []}, "max_edits", "no effect without draft"),
        ({"pinned": [[0, 1]]}, "pinned", "no effect without draft"),
        ({"draft": [1 << 30]}, "draft", "outside 0"),
    ],
)
def test_a_draft_that_cannot_be_used_is_refused_with_its_field(client, fields, param, says):
    found, message = refused(client, **fields)
    assert says in message
    assert found == param


def test_a_draft_and_a_schema_give_json_of_the_schema(client):
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    for draft in ('{"answer": 13}', '{"answer": "13"}', "no json at all"):
        fields = {"draft": draft, "guided_json": schema, "max_tokens": 32, "temperature": 1.0}
        (text,) = texts_of(client.post("/v1/chat/completions", json={**CHAT, **WINO, **fields}))
        assert isinstance(json.loads(text)["answer"], int), text
