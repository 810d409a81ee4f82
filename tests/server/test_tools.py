"""Tools: required and named calls are guaranteed, other calls are found in the answer."""

from __future__ import annotations

import json

import pytest
from served import CHAT

from unmask.server.tool_fields import Tool, ToolParser, call_schema

CHAT_URL = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "$defs": {"Unit": {"enum": ["C", "F"]}},
            "type": "object",
            "properties": {"days": {"type": "integer"}, "unit": {"$ref": "#/$defs/Unit"}},
            "required": ["days", "unit"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
SHORT = {"max_tokens": 64, "decoder": "threshold", "tools": [WEATHER, NOW]}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def check_call(call):
    function = call["function"]
    arguments = json.loads(function["arguments"])
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    if function["name"] == "now":
        assert arguments == {}
    else:
        assert function["name"] == "get_weather"
        assert isinstance(arguments["days"], int)
        assert arguments["unit"] in ("C", "F")
    return function["name"]


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_required_call_is_always_made(client, choice):
    for seed in range(4):
        body = {**CHAT, **SHORT, "tool_choice": choice, "seed": seed, "temperature": 2.0}
        reply = client.post(CHAT_URL, json=body)
        assert reply.status_code == 200, reply.text
        found = reply.json()["choices"][0]
        assert found["finish_reason"] == "tool_calls"
        assert found["message"]["content"] is None
        (call,) = found["message"]["tool_calls"]
        assert check_call(call) == "get_weather" or choice == "required"


def test_a_stream_sends_the_call_when_it_is_complete(client):
    body = {**CHAT, **SHORT, "tool_choice": "required", "stream": True, "seed": 1}
    deltas, finish = [], []
    with client.stream("POST", CHAT_URL, json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                deltas.append(choice["delta"])
                finish.append(choice["finish_reason"])
    assert finish[-1] == "tool_calls"
    assert not any(delta.get("content") for delta in deltas)
    (call,) = deltas[-1]["tool_calls"]
    assert call["index"] == 0
    check_call(call)


def test_the_openai_sdk_runs_a_loop_of_calls(live):
    import openai

    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as sdk:
        messages = [{"role": "user", "content": "What is the weather?"}]
        reply = sdk.chat.completions.create(
            model="demo", messages=messages, tools=[WEATHER], tool_choice="required", max_tokens=64
        )
        (call,) = reply.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["unit"] in ("C", "F")


def test_none_leaves_the_tools_out(client):
    plain = client.post(CHAT_URL, json={**CHAT, "max_tokens": 8}).json()["choices"][0]
    body = {**CHAT, "max_tokens": 8, "tools": [WEATHER], "tool_choice": "none"}
    assert client.post(CHAT_URL, json=body).json()["choices"][0] == plain


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', None, ["now"]),
        ('Yes.<tool_call>{"name": "now", "arguments": {"a": "é"}}</tool_call>', "Yes.", ["now"]),
        ('{"name": "get_weather", "parameters": {"days": 1}}', None, ["get_weather"]),
        (
            '[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]',
            None,
            ["now", "now"],
        ),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("<tool_call>{</tool_call>", "<tool_call>{</tool_call>", []),
        ("It is now.", "It is now.", []),
        ('{"name": ["now"], "arguments": {}}', '{"name": ["now"], "arguments": {}}', []),
    ],
)
def test_calls_are_found_in_the_forms_of_the_families(text, content, calls):
    names = frozenset({"now", "get_weather"})
    rest, found = ToolParser(names).parse(text)
    assert rest == content
    assert [call["function"]["name"] for call in found] == calls
    assert len(ToolParser(names, is_parallel=False).parse(text)[1]) == min(1, len(calls))


def test_references_of_a_tool_hold_within_the_schema_of_a_call():
    schema = call_schema([Tool.model_validate(NOW), Tool.model_validate(WEATHER)])
    arguments = schema["anyOf"][1]["properties"]["arguments"]
    assert arguments["properties"]["unit"] == {"$ref": "#/anyOf/1/properties/arguments/$defs/Unit"}


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"tools": [WEATHER]}, "tools", "does not read tools"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": {**NAMED, "function": {"name": "x"}}}, "tool_choice", "not among"),
        ({"tool_choice": "required", "stop": "}"}, None, "exclude stop"),
        ({"tool_choice": "required", "guided_regex": "a"}, None, "two constraints"),
        ({"tools": [{"type": "web_search"}]}, None, "function"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"not": {}}},
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
            "'not'",
        ),
    ],
)
def test_what_no_call_can_meet_is_refused(client, fields, param, word):
    reply = client.post(CHAT_URL, json={**CHAT, **SHORT, **fields})
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert word in error["message"]
    assert param in (None, error["param"])


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_leave_out_the_others(client):
    for seed in range(3):
        body = {**CHAT, **SHORT, "seed": seed, "temperature": 2.0}
        reply = client.post(CHAT_URL, json={**body, "tool_choice": allowed("required", "now")})
        assert reply.status_code == 200, reply.text
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
        assert check_call(call) == "now"


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (allowed("required", "no_such"), "not among tools"),
        (allowed("auto", "now"), "does not read tools"),
        (allowed("required"), "at least 1"),
        ({"type": "allowed_tools"}, "which needs it"),
        ({"type": "auto", **{"allowed_tools": allowed("auto", "now")["allowed_tools"]}}, "belongs"),
    ],
)
def test_allowed_tools_that_say_nothing_are_refused(client, choice, says):
    reply = client.post(CHAT_URL, json={**CHAT, **SHORT, "tool_choice": choice})
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]
