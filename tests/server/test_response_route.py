"""`/v1/responses`: the answers of the chat route in the form of OpenAI's Responses, for its SDK too."""

from __future__ import annotations

import json

import pytest
from served import ANSWER, CHAT, QUESTION

URL, CHAT_URL = "/v1/responses", "/v1/chat/completions"
BODY = {"input": QUESTION, "max_output_tokens": 48, "decoder": "threshold", "seed": 0}
EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def ask(client, **more):
    response = client.post(URL, json={**BODY, **more})
    assert response.status_code == 200, response.text
    return response.json()


def events_of(client, **more):
    lines = client.post(URL, json={**BODY, **more, "stream": True}).text.strip().split("\n\n")
    found = []
    for line in lines:
        kind, data = line.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def text_of(response):
    return response["output"][0]["content"][0]["text"]


def test_a_response_is_the_answer_of_the_chat_route(client):
    chat = client.post(CHAT_URL, json={**CHAT, "max_tokens": 48, "seed": 0}).json()
    found = ask(client, metadata={"team": "a"}, store=True, prompt_cache_key="k")
    assert text_of(found) == chat["choices"][0]["message"]["content"] == ANSWER
    assert (found["status"], found["incomplete_details"]) == ("completed", None)
    assert (found["metadata"], found["store"]) == ({"team": "a"}, False)
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert found["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert found["unmask"] == chat["unmask"]


def test_a_response_that_reached_the_length_is_incomplete(client):
    found = ask(client, max_output_tokens=8)
    assert found["status"] == found["output"][0]["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events_of(client, max_output_tokens=8)[-1]["type"] == "response.incomplete"


def test_the_events_come_in_order_and_their_deltas_are_the_text(client):
    events = events_of(client)
    assert list(dict.fromkeys(event["type"] for event in events)) == EVENTS
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert {**last, "id": "", "output": "", "created_at": 0} == {
        **ask(client),
        "id": "",
        "output": "",
        "created_at": 0,
    }
    assert events[0]["response"]["status"] == "in_progress"
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


def test_history_and_instructions_are_the_turns_of_a_chat(client):
    first = ask(client)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *first["output"],
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": "And 3 more?"},
    ]
    found = ask(client, instructions="You count eggs.", input=items, max_output_tokens=8)
    turns = [
        {"role": "system", "content": "You count eggs."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And 3 more?"},
    ]
    chat = client.post(
        CHAT_URL,
        json={"messages": turns, "max_tokens": 8, "decoder": "threshold", "seed": 0},
    ).json()
    assert text_of(found) == chat["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier messages"),
        ({"max_tokens": 8}, "max_tokens", "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools", "not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'text'"),
        ({"n": 2}, "n", "one answer"),
        ({"stream": True, "stream_mode": "canvas"}, "stream_mode", "carry text"),
        ({"max_output_tokens": 1 << 19}, "max_output_tokens", "context"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, None, "message"),
        ({"background": True}, "background", "not supported"),
    ],
)
def test_what_would_change_the_answer_and_cannot_is_refused(client, more, param, words):
    reply = client.post(URL, json={**BODY, **more})
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert words in error["message"]
    assert param in (None, error["param"])


def test_one_turn_too_many_by_the_instructions_is_refused(client):
    items = [{"role": "user", "content": "a"}] * 1024
    reply = client.post(URL, json={**BODY, "instructions": "Be brief.", "input": items})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")


def test_an_empty_answer_is_legal_history(client):
    empty = events_of(client, stop="I", max_output_tokens=4)[-1]["response"]["output"]
    assert empty[0]["content"][0]["text"] == ""
    turn = {"role": "user", "content": QUESTION}
    assert ask(client, input=[turn, *empty, turn], max_output_tokens=4)["output"]


def test_the_sdk_creates_and_streams_responses(live):
    openai = pytest.importorskip("openai")
    own = {"decoder": "threshold", "seed": 0}
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as sdk:
        body = {"model": "demo", "input": QUESTION, "max_output_tokens": 48, "extra_body": own}
        whole = sdk.responses.create(**body)
        assert whole.output_text == ANSWER
        type(whole).model_validate(whole.model_dump(), strict=False)
        assert whole.usage.output_tokens_details.reasoning_tokens == 0
        with sdk.responses.stream(**body) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            final = stream.get_final_response()
        assert text == final.output_text == ANSWER
        history = [
            {"role": "user", "content": QUESTION},
            *(item.to_dict() for item in final.output),
        ]
        again = sdk.responses.create(
            **{**body, "input": [*history, {"role": "user", "content": QUESTION}]}
        )
        assert again.usage.input_tokens > whole.usage.input_tokens
