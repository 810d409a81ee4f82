"""Replies have the keys and values of the recorded ones, and fit the models that the document is made from.

Record them anew, after an intended change of the contract, with `python tests/server/test_reply_shapes.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ConfigDict, TypeAdapter

from unmask.server.capabilities import Capabilities, KnobInfo
from unmask.server.reply_models import (
    CanvasPosition,
    ChatChunk,
    ChatCompletion,
    ErrorReply,
    Health,
    InfillCompletion,
    ModelCard,
    ModelList,
    TextChunk,
    TextCompletion,
    TokenLogprob,
    TraceStep,
    encode,
)
from unmask.server.sglang import GenerateReply, ServedModelInfo, ServerInfo

RECORDED = Path(__file__).parent / "replies.json"
CHAT_URL, COMPLETIONS, INFILL = "/v1/chat/completions", "/v1/completions", "/v1/infill"
TURN = {"messages": [{"role": "user", "content": "What is 3*4?"}]}
SHORT = {"max_tokens": 6, "decoder": "threshold", "seed": 0}
PARTS = {"parts": ["The cat ", 2, " on the ", 1, "."], "decoder": "threshold", "seed": 0}
NATIVE = {"text": "A dog", "sampling_params": {"max_new_tokens": 4, "steps": 2, "sampling_seed": 0}}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
REQUESTS = {
    "chat": (CHAT_URL, {**TURN, **SHORT}),
    "chat: logprobs and trace": (
        CHAT_URL,
        {**TURN, **SHORT, "logprobs": True, "return_trace": True},
    ),
    "completions": (COMPLETIONS, {"prompt": ["A dog", "3*4="], **SHORT, "n": 2}),
    "completions: logprobs": (COMPLETIONS, {"prompt": "A \U0001f642 dog", **SHORT, "logprobs": 0}),
    "infill": (INFILL, {**PARTS, "return_trace": True}),
    "generate": ("/generate", NATIVE),
    "generate: several": ("/generate", {**NATIVE, "text": ["A dog", "3*4="]}),
    "chat stream": (
        CHAT_URL,
        {**TURN, **SHORT, "logprobs": True, "return_trace": True, "stream": True},
    ),
    "chat stream: usage": (CHAT_URL, {**TURN, **SHORT, "stream_options": USAGE, "stream": True}),
    "chat stream: no text": (CHAT_URL, {**TURN, **SHORT, "stop": "1", "stream": True}),
    "completions stream": (COMPLETIONS, {"prompt": "3*4=", **SHORT, "logprobs": 0, "stream": True}),
    "infill stream": (INFILL, {**PARTS, "return_trace": True, "stream": True}),
    "infill canvas": (INFILL, {**PARTS, "stream": True, "stream_mode": "canvas"}),
    "chat canvas": (CHAT_URL, {**TURN, **SHORT, "stream": True, "stream_mode": "canvas"}),
    "generate stream": ("/generate", {**NATIVE, "stream": True}),
    "refused": (COMPLETIONS, {"prompt": "a", "max_tokens": 0}),
    "not found": ("/v1/nothing", {}),
    "models": ("/v1/models", None),
    "model": ("/v1/models/demo", None),
    "health": ("/health", None),
    "server_info": ("/server_info", None),
    "model_info": ("/model_info", None),
}
CHANGING = {
    "id": "",
    "created": 0,
    "e2e_latency": 0,
    "system_fingerprint": "",
    "version": "",
    "avg_spec_accept_length": 0,
    "versions": {},
    "knobs": {},
}
"""Keys whose values differ from run to run, or with every new knob."""


def send(client, path, body):
    """The values of a reply or of all events of a stream, those that change from run to run at zero."""
    response = client.get(path) if body is None else client.post(path, json=body)
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [json.loads(response.text, object_hook=steady)]
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line, object_hook=steady) for line in lines]


def steady(record):
    return {key: CHANGING.get(key, value) for key, value in record.items()} | (
        {"id": record["id"]} if record.get("object") == "model" else {}
    )


def close(value):
    """A value that equals another up to the rounding of floats."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-6)
    if isinstance(value, list):
        return [close(item) for item in value]
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("name", REQUESTS)
def test_a_reply_has_the_keys_and_values_of_the_recorded_one(client, name):
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    replies = send(client, *REQUESTS[name])
    assert replies == close(recorded[name])
    types = [json.dumps(reply, default=str) for reply in replies]
    assert [text.count(".0") for text in types] == [
        json.dumps(reply).count(".0") for reply in recorded[name]
    ], "an integer stays an integer"


MODELS = {
    "chat.completion": ChatCompletion,
    "text_completion": TextCompletion,
    "infill": InfillCompletion,
    "chat.completion.chunk": ChatChunk,
    "infill.chunk": TextChunk,
    "list": ModelList,
    "model": ModelCard,
}
UNCHECKED = {"content": TokenLogprob, "trace": TraceStep, "slots": CanvasPosition}
"""Lists that the server does not validate, since they have an entry per token, forward or position."""


def model_of(reply):
    if isinstance(reply, list):
        return TypeAdapter(list[GenerateReply])
    if "usage" not in reply and reply.get("object") == "text_completion":
        return TextChunk
    if "object" in reply:
        return MODELS[reply["object"]]
    by_key = {"meta_info": GenerateReply, "error": ErrorReply, "status": Health}
    by_key |= {"internal_states": ServerInfo, "is_generation": ServedModelInfo}
    return next(model for key, model in by_key.items() if key in reply)


def check_items(value):
    """Validate the lists that the server does not, wherever they are in a reply."""
    if isinstance(value, list):
        for item in value:
            check_items(item)
    if isinstance(value, dict):
        for key, item in value.items():
            check_items(item)
            if key in UNCHECKED and isinstance(item, list):
                strict = ConfigDict(strict=True, extra="forbid")
                TypeAdapter(list[UNCHECKED[key]], config=strict).validate_json(json.dumps(item))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_recorded_reply_fits_its_model_to_the_last_entry(name):
    for reply in json.loads(RECORDED.read_text(encoding="utf-8"))[name]:
        model = model_of(reply)
        validate = (
            model.validate_json if isinstance(model, TypeAdapter) else model.model_validate_json
        )
        again = json.loads(encode(validate(json.dumps(reply))))
        assert again == reply
        check_items(reply)


def test_the_capabilities_fit_their_model_to_the_last_knob(client):
    text = client.get("/v1/schema").text
    reply = Capabilities.model_validate_json(text)
    assert json.loads(encode(reply)) == json.loads(text)
    knobs = TypeAdapter(list[KnobInfo], config=ConfigDict(strict=True, extra="forbid"))
    for method in [*reply.decoders, *reply.caches]:
        knobs.validate_json(json.dumps(method.knobs))
    knobs.validate_json(json.dumps(reply.shared))


def record():
    from fastapi.testclient import TestClient

    from unmask import LLM
    from unmask.engine.engine import Engine
    from unmask.server.app import create_app
    from unmask.server.settings import ServerSettings

    llm = LLM("demo", dtype="float32", device="cpu")
    app = create_app(llm, Engine(llm), ServerSettings(models=("demo", "other-name")))
    with TestClient(app, raise_server_exceptions=False) as client:
        found = {name: send(client, *request) for name, request in REQUESTS.items()}
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
