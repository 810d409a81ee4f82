"""Block-causal models over HTTP: answers whose last block would reach beyond the context."""

from __future__ import annotations

import pytest
from served import gated_client
from tiny import tiny_llm

from unmask import decoders
from unmask.server.settings import ServerSettings

BLOCK, CONTEXT = 32, 100


@pytest.fixture(scope="module")
def blocks():
    llm = tiny_llm("llada", 1, block_size=BLOCK, max_length=CONTEXT)
    with gated_client(llm, ServerSettings(("tiny",))) as client:
        yield client


# 8
@pytest.mark.parametrize(
    ("decoder", "cache"), [*((name, "block_causal") for name in decoders.names()), ("wino", "none")]
)
def test_a_last_block_beyond_the_context_is_cut_and_the_answer_is_whole(blocks, decoder, cache):
    """The context is no whole number of blocks: 96 + 4."""
    for num_prompt, length in ((96, 4), (96, 1), (67, 33), (99, 1)):
        body = {"prompt": [5] * num_prompt, "max_tokens": length, "ignore_eos": True}
        body |= {"decoder": decoder, "cache": cache}
        response = blocks.post("/v1/completions", json=body)
        assert response.status_code == 200, (num_prompt, length, response.text)
        assert response.json()["usage"]["completion_tokens"] == length
        more = blocks.post("/v1/completions", json={**body, "max_tokens": length + 1})
        if num_prompt + length == CONTEXT:
            assert more.status_code == 400
            assert f"use max_tokens={length}" in more.json()["error"]["message"]


def test_a_block_causal_model_refuses_no_cache(blocks):
    caches = blocks.get("/v1/schema").json()["caches"]
    assert [item["name"] for item in caches if item["refused"]] == []
