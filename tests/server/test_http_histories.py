"""Histories as clients send them: turns without text, names, parts, tools; variables of the template."""

from __future__ import annotations

import logging

import pytest
from fastapi.testclient import TestClient

from unmask.engine.engine import Engine
from unmask.engine.templates import ChatFormat
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings

URL = "/v1/chat/completions"
ASK = {"role": "user", "content": "Anna has 7 eggs."}
SHORT = {"max_tokens": 4, "decoder": "threshold"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def ask(client, *messages, **fields):
    return client.post(URL, json={"messages": list(messages), **SHORT, **fields})


@pytest.mark.parametrize(
    "turn",
    [
        {"content": ""},
        {"content": None},
        {},
        {"content": []},
        {"content": "12", "name": "helper"},
        {"content": "", "tool_calls": [], "function_call": None, "annotations": [], "audio": None},
        {"content": None, "refusal": None, "tool_calls": None, "reasoning_content": None},
        {"content": "12", "reasoning_content": "7+5"},
        {"content": "12", "provider_specific_fields": None},
        {"content": "12", "provider_specific_fields": {"refusal": None}, "model": "gpt-4o"},
        {"content": "12", "id": "msg_1", "created_at": 5, "status": "completed", "weight": 1},
        {"content": "12", "reasoning_details": [], "thinking_blocks": [], "images": []},
        {"content": "12", "prefix": False, "partial": False, "refusal": ""},
        {"content": [{"type": "output_text", "text": "12", "annotations": []}]},
        {"content": [{"text": "12"}], "cache_control": {"type": "ephemeral"}},
    ],
)
def test_an_assistants_turn_may_be_empty_and_carry_what_replies_carry(client, turn):
    response = ask(client, ASK, {"role": "assistant", **turn}, ASK)
    assert response.status_code == 200, response.text


def test_a_reply_may_be_sent_back_as_it_is(client):
    turn = ask(client, ASK).json()["choices"][0]["message"]
    assert ask(client, ASK, turn, ASK).status_code == 200


def test_empty_turns_have_the_tokens_of_the_library(client, demo_llm):
    turns = [{"role": "system", "content": ""}, ASK, {"role": "assistant"}, ASK]
    usage = ask(client, *turns).json()["usage"]
    assert usage["prompt_tokens"] == len(demo_llm.chat_ids(turns))


def test_parts_and_hints_on_them_are_the_text(client, demo_llm):
    parts = [
        {"type": "text", "text": "Anna has ", "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": "7 eggs."},
    ]
    usage = [ask(client, {**ASK, "content": c}).json()["usage"] for c in (parts, ASK["content"])]
    assert usage[0]["prompt_tokens"] == usage[1]["prompt_tokens"]
    assert len(demo_llm.chat_ids([{**ASK, "content": parts}])) == usage[0]["prompt_tokens"]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "user", "content": None}, "has no content"),
        ({"role": "user"}, "has no content"),
        ({"role": "system", "content": None}, "has no content"),
        ({"role": "user", "content": ""}, "is empty"),
        ({"role": "user", "content": []}, "is empty"),
        ({"role": "user", "content": "x", "name": 7}, "string"),
        ({"role": "critic", "content": "3"}, "role"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "write it as content"),
        ({"role": "assistant", "content": "1", "prefix": True}, "not permitted"),
        ({"role": "user", "content": "x", "images": ["data"]}, "not permitted"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "no part of text"),
    ],
)
def test_what_would_have_to_be_dropped_is_refused_in_plain_words(client, turn, reason):
    response = ask(client, ASK, turn)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert len(response.content) < 600


def test_calls_and_their_results_are_part_of_a_history(client, demo_llm):
    turns = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
    ]
    usage = [ask(client, *turns[:count]).json()["usage"]["prompt_tokens"] for count in (1, 2, 3)]
    assert usage[0] < usage[1] < usage[2] == len(demo_llm.chat_ids(turns))


def test_a_template_that_leaves_out_calls_or_results_is_told(demo_llm, monkeypatch):
    plain = (
        "{% for message in messages if message.role != 'tool' %}{{ message.content }}{% endfor %}"
    )
    monkeypatch.setattr(demo_llm.prompts, "chat", ChatFormat(demo_llm.tokenizer, plain))
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(models=("demo",)))
    with TestClient(app) as client:
        for turn, reason in (
            ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls"),
            ({"role": "tool", "content": "3", "tool_call_id": "c"}, "the tool's messages"),
        ):
            response = ask(client, ASK, turn)
            assert response.status_code == 400
            assert reason in response.json()["error"]["message"]


def test_variables_of_the_template_are_taken_and_those_of_the_renderer_refused(client):
    assert ask(client, ASK, chat_template_kwargs={"enable_thinking": False}).status_code == 200
    for wrong in ({"messages": []}, {"tokenize": True}, {"x": "y" * 20_000}):
        response = ask(client, ASK, chat_template_kwargs=wrong)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chat_template_kwargs"


def test_the_last_message_is_continued_on_request(client, demo_llm):
    turns = [ASK, {"role": "assistant", "content": "Then: 7"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    usage = ask(client, *turns, **options).json()["usage"]
    assert usage["prompt_tokens"] == len(demo_llm.chat_ids(turns, **options))
    assert usage["prompt_tokens"] < ask(client, *turns).json()["usage"]["prompt_tokens"]
    assert ask(client, ASK, **options).status_code == 400
    tokens = client.post("/tokenize", json={"messages": turns, **options}).json()["tokens"]
    assert tokens == demo_llm.chat_ids(turns, **options)


def test_a_template_that_cannot_work_is_told_at_start_and_in_400s(demo_llm, monkeypatch, caplog):
    broken = ChatFormat(demo_llm.tokenizer, "{{ 1 // (messages|length - 1) }}")
    monkeypatch.setattr(demo_llm.prompts, "chat", broken)
    app = create_app(demo_llm, Engine(demo_llm), ServerSettings(models=("demo",)))
    with caplog.at_level(logging.WARNING, "unmask.server"), TestClient(app) as client:
        assert "cannot answer a user: the model's chat template fails" in caplog.text
        message = ask(client, ASK).json()["error"]["message"]
        assert "ZeroDivisionError" in message
        assert client.post("/v1/completions", json={"prompt": "A", **SHORT}).status_code == 200
        assert client.get("/v1/schema").json()["model"]["has_chat_template"] is False
