"""An answer of end tokens alone is an answer: it says the role, and an empty content, and no more."""

from __future__ import annotations

import json


def test_a_chat_without_text_streams_a_role_and_then_an_empty_content(client):
    body = {
        "messages": [{"role": "user", "content": "x y z"}],
        "decoder": "threshold",
        "max_tokens": 8,
        "ignore_eos": True,
    }
    whole = client.post("/v1/chat/completions", json=body).json()
    assert whole["choices"][0]["message"]["content"] == "", "else the prompt must be another"
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    first, last = (json.loads(line[6:])["choices"][0] for line in lines[:-1])
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert first["finish_reason"] is None
    # vLLM's client counts a request as failed unless some chunk has a content and no role
    assert last["delta"] == {"content": ""}
    assert last["finish_reason"] == "length"
