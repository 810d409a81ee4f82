"""Tools: required and named calls are guaranteed, other calls are found in the answer."""

from __future__ import annotations

import json

import pytest
from served import CHAT

from unmask.errors import GrammarError
from unmask.grammar.constraint import json_schema
from unmask.server.tool_fields import ToolParser
from unmask.server.tool_schemas import call_schema

CHAT_URL = "/v1/chat/completions"
TAGS = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
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
        (json.dumps({"name": "now", "arguments": {"s": TAGS}}), None, ["now"]),
        (
            f"<tool_call>{json.dumps({'name': 'now', 'arguments': {'s': TAGS}})}</tool_call>",
            None,
            ["now"],
        ),
        (f"a {TAGS} b {TAGS}", "a  b", ["now", "now"]),
        (f"{TAGS} <tool_call>{{", "<tool_call>{", ["now"]),
        (f"{TAGS} <tool_call>1</tool_call>", f"{TAGS} <tool_call>1</tool_call>", []),
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
    schema = call_schema([("now", None), ("w", WEATHER["function"]["parameters"])])
    arguments = schema["anyOf"][1]["properties"]["arguments"]
    assert arguments["properties"]["unit"] == {"$ref": "#/anyOf/1/properties/arguments/$defs/Unit"}


def test_a_reference_in_data_is_data_and_one_in_a_property_of_any_name_is_moved():
    data, name = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/U"}
    parameters = {
        "type": "object",
        "$defs": {"U": {"type": "integer"}, "const": {"items": name}},
        "properties": {
            "a": {"const": data, "default": data, "examples": [data]},
            "b": {"anyOf": [{"enum": [data, [data]]}, name]},
            "const": name,
            "default": {"type": "array", "items": name},
            "$ref": name,
        },
    }
    own = call_schema([("f", parameters)])["anyOf"][0]["properties"]["arguments"]
    there = {"$ref": "#/anyOf/0/properties/arguments/$defs/U"}
    assert own["properties"] == {
        "a": {"const": data, "default": data, "examples": [data]},
        "b": {"anyOf": [{"enum": [data, [data]]}, there]},
        "const": there,
        "default": {"type": "array", "items": there},
        "$ref": there,
    }
    assert own["$defs"]["const"] == {"items": there}


def test_a_constant_with_a_reference_comes_back_as_it_was_given(client):
    data = {"$ref": "#/x"}
    fields = {"type": "object", "properties": {"a": {"const": data}}, "required": ["a"]}
    assert arguments_of(client, fields) == {"a": data}


def arguments_of(client, parameters, **fields):
    """Return the arguments of a required call of a function with these parameters."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    body = {**CHAT, **SHORT, "tools": tools, "tool_choice": "required", **fields}
    reply = client.post(CHAT_URL, json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == "f"
    return json.loads(call["function"]["arguments"])


OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("parameters", "is_right"),
    [
        ({"title": "x"}, lambda value: isinstance(value, dict)),
        ({"x-own": 1, "minLength": 3}, lambda value: isinstance(value, dict)),
        ({"anyOf": [{"type": "null"}, OBJECT]}, lambda value: isinstance(value["n"], int)),
        ({"oneOf": [OBJECT, {"type": "null"}]}, lambda value: isinstance(value["n"], int)),
        ({"type": "object", "anyOf": [{"type": "null"}, OBJECT]}, lambda value: "n" in value),
        ({**OBJECT, "type": ["object", "null"]}, lambda value: isinstance(value["n"], int)),
        ({"enum": [1, "a", {"k": 2}, None]}, {"k": 2}.__eq__),
        ({"allOf": [{"anyOf": [{"const": 1}, {"const": {"k": 2}}]}]}, {"k": 2}.__eq__),
        (
            {"$defs": {"P": {"anyOf": [{"type": "string"}, OBJECT]}}, "$ref": "#/$defs/P"},
            lambda value: isinstance(value["n"], int),
        ),
        (
            {"anyOf": [{"type": "null"}, {**OBJECT, "properties": {"n": {"$ref": "#/anyOf/0"}}}]},
            {"n": None}.__eq__,
        ),
    ],
)
def test_the_arguments_of_a_required_call_are_an_object(client, parameters, is_right):
    for seed in range(2):
        assert is_right(arguments_of(client, parameters, seed=seed, temperature=2.0))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "string"},
        {"type": ["array", "null"]},
        {"const": 3},
        {"anyOf": [{"type": "integer"}, {"enum": [1, None]}, False]},
        {"$defs": {"S": {"type": "string"}}, "$ref": "#/$defs/S"},
        {"$ref": "#"},
    ],
)
def test_parameters_that_admit_no_object_are_refused_in_plain_words(client, parameters):
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    body = {**CHAT, **SHORT, "tools": tools, "tool_choice": "required"}
    error = client.post(CHAT_URL, json=body).json()["error"]
    assert "'f' admit no object" in error["message"]
    assert error["param"] == "tools"


def test_what_a_grammar_refuses_beside_a_reference_is_still_refused():
    parameters = {"$defs": {"P": {"type": ["object", "null"]}}, "$ref": "#/$defs/P", "required": []}
    with pytest.raises(GrammarError, match="'required' beside"):
        json_schema(call_schema([("f", parameters)]))


def test_tags_in_an_argument_are_a_part_of_it(client):
    fields = {"type": "object", "properties": {"s": {"const": TAGS}}, "required": ["s"]}
    assert arguments_of(client, fields, max_tokens=128) == {"s": TAGS}


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


@pytest.mark.parametrize(
    "choice", ["required", NAMED, {"type": "function", "function": {"name": "a b"}}]
)
def test_a_faulty_tool_is_refused_for_itself_alone(client, choice):
    tools = [{"type": "function", "function": {"name": "a b"}}]
    body = {**CHAT, **SHORT, "tools": tools, "tool_choice": choice}
    error = client.post(CHAT_URL, json=body).json()["error"]
    assert error["param"] == "tools.0.function.name"
    assert "tool_choice" not in error["message"]
    assert "needs tools" not in error["message"]


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
