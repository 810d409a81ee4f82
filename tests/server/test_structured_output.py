"""Structured output over HTTP, in the spellings of OpenAI, vLLM and SGLang."""

from __future__ import annotations

import json
import re

import pytest
from served import CHAT

CHAT_URL = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "unit": {"enum": ["eggs", "km"]}},
    "required": ["answer", "unit"],
    "additionalProperties": False,
}
OPENAI = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
SHORT = {"max_tokens": 40, "decoder": "threshold", "seed": 1}


def content(client, **fields):
    reply = client.post(CHAT_URL, json={**CHAT, **SHORT, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def is_answer(text):
    value = json.loads(text)
    return isinstance(value["answer"], int) and value["unit"] in ("eggs", "km")


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"response_format": OPENAI}, is_answer),
        ({"response_format": {"type": "json_object"}}, json.loads),
        ({"structured_outputs": {"json": SCHEMA}}, is_answer),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, is_answer),
        ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, json.loads),
        ({"structured_outputs": {"regex": "[ab]{3}-\\d"}}, re.compile("[ab]{3}-\\d").fullmatch),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ("yes", "no").__contains__),
        ({"guided_json": SCHEMA}, is_answer),
        ({"guided_regex": "(ab)+"}, re.compile("(ab)+").fullmatch),
        ({"guided_choice": ["left", "right"]}, ("left", "right").__contains__),
        ({"guided_json": SCHEMA, "json_schema": json.dumps(SCHEMA)}, is_answer),
        ({"response_format": OPENAI, "temperature": 1.5, "decoder": "prophet"}, is_answer),
    ],
)
def test_an_answer_has_the_form_that_was_asked_for(client, fields, check):
    assert check(content(client, **fields)) not in (None, False)


@pytest.mark.parametrize(
    "idle",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "text", "json_schema": None}},
        {"structured_outputs": {}},
        {"response_format": {"type": "text"}, "stop": "@@@"},
        {"stop": []},
    ],
)
def test_a_field_that_asks_for_nothing_changes_nothing(client, idle):
    assert content(client, **idle) == content(client)


def test_null_in_a_response_format_counts_as_left_out(client):
    form = {"type": "json_object", "json_schema": None}
    plain = content(client, response_format={"type": "json_object"})
    assert content(client, response_format=form) == plain
    inner = {"schema": SCHEMA, "name": None, "strict": None, "description": None}
    assert is_answer(
        content(client, response_format={"type": "json_schema", "json_schema": inner, "x": None})
    )


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "a", "guided_choice": ["a", "b"], "stop": "b"}),
        ("/v1/completions", {"prompt": "a", "suffix": "b", "regex": "c+", "stop": ["c"]}),
        ("/v1/fim/completions", {"prompt": "a", "suffix": "b", "regex": "c+", "stop": "c"}),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_object"}}, "stop": "}"}),
        ("/generate", {"text": "a", "sampling_params": {"regex": "c+", "stop": ["c"]}}),
        ("/generate", {"text": "a", "sampling_params": {"ebnf": 'root ::= "c"', "stop": "c"}}),
    ],
)
def test_a_stop_string_beside_a_constraint_is_refused_on_every_route(client, url, body):
    reply = client.post(url, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "stop")
    assert "stop could cut the answer" in error["message"]


def test_stop_token_ids_do_not_cut_a_constrained_answer(client, demo_llm):
    (space,) = demo_llm.prompts.encode(" ", special=False)
    for seed in range(3):
        fields = {"guided_json": SCHEMA, "stop_token_ids": [space], "seed": seed}
        assert is_answer(content(client, **fields, temperature=2.0))


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/v1/infill", {"parts": ["a", 2, "b"], "regex": "(ab ){60}"}, "parts"),
        (
            "/v1/responses",
            {"input": "a", "max_output_tokens": 2, "regex": "(ab ){60}"},
            "max_output_tokens",
        ),
        (
            "/v1/responses",
            {"input": "a", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "text.format",
        ),
        (
            "/v1/responses",
            {"input": "a", "text": {"format": {"type": "json_object"}}, "regex": "a"},
            "regex",
        ),
        (
            "/v1/responses",
            {
                "input": "a",
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": 1}}},
            },
            "response_format",
        ),
        (
            "/generate",
            {"text": "a", "sampling_params": {"max_new_tokens": 2, "regex": "(ab ){60}"}},
            "max_new_tokens",
        ),
        (
            "/generate",
            {"text": "a", "sampling_params": {"json_schema": r'{"const": "\ud800"}'}},
            "json_schema",
        ),
        ("/v1/completions", {"prompt": "a", "guided_json": r'{"enum": ["\udc00"]}'}, "guided_json"),
    ],
)
def test_an_error_names_the_field_that_the_client_sent(client, url, body, param):
    reply = client.post(url, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_half_a_character_in_the_arguments_of_an_earlier_call_is_no_failure(client):
    function = {"name": "f", "arguments": r'{"a": "\ud800"}'}
    calls = [{"id": "c", "type": "function", "function": function}]
    turns = [*CHAT["messages"], {"role": "assistant", "tool_calls": calls}]
    turns.append({"role": "tool", "tool_call_id": "c", "content": "1"})
    reply = client.post(CHAT_URL, json={**CHAT, **SHORT, "messages": turns})
    assert reply.status_code in (200, 400), reply.text


def test_every_choice_and_every_prompt_has_the_form(client):
    body = {"prompt": ["1 + 1 =", "a"], "n": 3, "temperature": 2.0, "max_tokens": 24, "seed": 3}
    reply = client.post("/v1/completions", json={**body, "guided_json": SCHEMA})
    choices = reply.json()["choices"]
    assert len(choices) == 6
    assert all(is_answer(choice["text"]) for choice in choices)


def test_a_middle_and_a_blank_have_the_form(client):
    body = {"prompt": "Is it? ", "suffix": " That is all.", "max_tokens": 6}
    reply = client.post("/v1/completions", json={**body, "guided_choice": ["yes", "no"]})
    assert reply.json()["choices"][0]["text"] in ("yes", "no")
    parts = ["The eggs: ", 4, ", the rest: ", 3, "."]
    reply = client.post("/v1/infill", json={"parts": parts, "regex": "[0-9]+"})
    assert re.fullmatch(r"The eggs:( )?\d+, the rest:( )?\d+\.", reply.json()["choices"][0]["text"])


def test_a_stream_joins_to_the_form(client):
    body = {**CHAT, **SHORT, "response_format": OPENAI, "stream": True}
    text = ""
    with client.stream("POST", CHAT_URL, json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert is_answer(text)


def test_sglang_and_responses_have_their_own_spellings(client):
    sampling = {"max_new_tokens": 40, "json_schema": json.dumps(SCHEMA)}
    reply = client.post("/generate", json={"text": "a", "sampling_params": sampling})
    assert is_answer(reply.json()["text"])
    sampling = {"max_new_tokens": 8, "regex": "x{3}"}
    reply = client.post("/generate", json={"text": "a", "sampling_params": sampling})
    assert reply.json()["text"] == "xxx"
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    body = {"input": "a", "max_output_tokens": 40, "text": {"format": form}}
    reply = client.post("/v1/responses", json=body).json()
    assert is_answer(reply["output"][0]["content"][0]["text"])
    assert reply["text"]["format"] == form


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"guided_regex": "(?=a)"}, "guided_regex", "lookaround"),
        ({"guided_json": {"type": "integer", "multipleOf": 2}}, "guided_json", "multipleOf"),
        ({"guided_choice": []}, "guided_choice", "choice=[] must be a list with at least one"),
        ({"guided_choice": [1]}, "guided_choice", "text"),
        ({"guided_json": "{"}, "guided_json", "schema"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "two constraints"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "rule"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
            "use json",
        ),
        ({"guided_grammar": 'start: "a"'}, "guided_grammar", "Lark"),
        ({"ebnf": "root ::= a"}, "ebnf", "no rule"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object", "true"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
            "an object",
        ),
        (
            {"guided_regex": "a{60}", "max_tokens": 3},
            "max_tokens",
            "positions, but the answer has 3",
        ),
        (
            {"guided_regex": "a{60}", "max_completion_tokens": 3, "max_tokens": None},
            "max_completion_tokens",
            "but the answer has 3",
        ),
        (
            {"structured_outputs": {"regex": "(ab ){600}"}, "max_tokens": None},
            "structured_outputs.regex",
            "but the answer has 128",
        ),
        (
            {"guided_regex": "(ab ){600}", "max_tokens": None, "draft": "a", "decoder": "wino"},
            "draft",
            "but the answer has 1",
        ),
        ({"guided_regex": "a", "vocabulary": "union"}, "vocabulary", "leaves out tokens"),
        ({"guided_json": r'{"const": "\ud800"}'}, "guided_json", "lone surrogate"),
        ({"json_schema": r'{"properties": {"\ud800": {}}}'}, "json_schema", "lone surrogate"),
        (
            {"structured_outputs": {"json": r'{"pattern": "\udfff"}'}},
            "structured_outputs.json",
            "lone",
        ),
        ({"guided_json": SCHEMA, "stop": [","]}, "stop", "stop could cut the answer"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop", "meet response_format"),
    ],
)
def test_what_no_answer_can_meet_is_refused_at_once(client, fields, param, word):
    reply = client.post(CHAT_URL, json={**CHAT, **SHORT, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert word in error["message"]


def test_the_openai_sdk_parses_its_own_models(live):
    import openai
    from pydantic import BaseModel

    class Step(BaseModel):
        count: int
        is_last: bool

    class Plan(BaseModel):
        title: str
        steps: list[Step]

    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as sdk:
        for seed in range(3):
            reply = sdk.chat.completions.parse(
                model="demo",
                messages=[{"role": "user", "content": "Plan."}],
                response_format=Plan,
                max_tokens=96,
                seed=seed,
            )
            assert isinstance(reply.choices[0].message.parsed, Plan)


@pytest.mark.parametrize("form", ["structured_outputs", "guided_grammar", "ebnf"])
def test_a_grammar_holds_in_each_clients_spelling(client, form):
    grammar = 'root ::= "<" inner ">"\ninner ::= "(" inner ")" | [0-9]'
    fields = {form: {"grammar": grammar} if form == "structured_outputs" else grammar}
    for seed in range(2):
        body = {**CHAT, **SHORT, **fields, "seed": seed, "temperature": 2.0, "max_tokens": 8}
        reply = client.post(CHAT_URL, json=body)
        assert reply.status_code == 200, reply.text
        assert re.fullmatch(
            r"<\({0,2}[0-9]\){0,2}>", reply.json()["choices"][0]["message"]["content"]
        )


def test_sglangs_ebnf_holds_in_its_own_route(client):
    body = {"text": "a", "sampling_params": {"ebnf": 'root ::= "x" | "yz"', "max_new_tokens": 4}}
    assert client.post("/generate", json=body).json()["text"] in ("x", "yz")
