"""A server with `--dllm-algorithm` answers as SGLang's loop does, in `oracles/sglang.py`."""

from __future__ import annotations

import json

import pytest
import torch
from oracles import sglang
from served import gated_client
from tiny import KNOWN, MASK, VOCAB, tiny_llm

from unmask.cli.serve import defaults_of, method_of
from unmask.cli.serve_options import ServedMethodOptions, ServeOptions
from unmask.server.settings import ServerSettings

SIZE = 8
PROMPTS = ([7], [1, 30, 22, 22, 5, 50, 4], [9] * 8, list(range(10, 21)))
LENGTHS = (3, 12, 9, 6)
KEYS = {
    "LowConfidence": {"threshold": 0.3},
    "JointThreshold": {
        "threshold": 0.2,
        "edit_threshold": 0.2,
        "max_post_edit_steps": 4,
        "penalty_lambda": 2.0,
    },
}
STEPS = {"LowConfidence": sglang.low_confidence, "JointThreshold": sglang.joint_threshold}


@pytest.fixture(scope="module", params=KEYS)
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def llm():
    return tiny_llm(seed=1, block_size=SIZE)


@pytest.fixture(scope="module")
def blocks(algorithm, llm, tmp_path_factory):
    file = tmp_path_factory.mktemp("sglang") / "config.yaml"
    keys = KEYS[algorithm] | {"block_size": SIZE, "vectorized_decoding": False}
    file.write_text(json.dumps(keys), encoding="utf-8")
    flags = ServedMethodOptions(
        dllm_algorithm=algorithm, dllm_algorithm_config=file, dllm_fdfo=False
    )
    options = ServeOptions(method=flags)
    defaults = defaults_of(llm.spec, options, method_of(options, {}))
    assert defaults.cache_name == "block_causal"
    with gated_client(llm, ServerSettings(("tiny",), defaults)) as client:
        yield client


def expected(algorithm, llm):
    def rows(ids):
        return llm.model(torch.tensor([ids]))[0].double()

    found = sglang.decode(
        rows,
        list(PROMPTS),
        list(LENGTHS),
        SIZE,
        MASK,
        {MASK, *range(KNOWN, VOCAB)},
        STEPS[algorithm],
        **KEYS[algorithm],
    )
    return [row.text[row.num_prompt :] for row in found], [row.trace for row in found]


def test_generate_gives_its_tokens(algorithm, llm, blocks):
    texts, _ = expected(algorithm, llm)
    for prompt, length, text in zip(PROMPTS, LENGTHS, texts, strict=True):
        sampling = {"max_new_tokens": length, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling}
        assert blocks.post("/generate", json=body).json()["output_ids"] == text


def test_frames_show_its_steps(algorithm, llm, blocks):
    """A frame has the positions that its forward wrote; the surplus stands behind the answer."""
    texts, traces = expected(algorithm, llm)
    for prompt, length, text, trace in zip(PROMPTS, LENGTHS, texts, traces, strict=True):
        body = {"prompt": prompt, "max_tokens": length, "ignore_eos": True}
        body |= {"stream": True, "stream_mode": "canvas"}
        with blocks.stream("POST", "/v1/completions", json=body) as reply:
            lines = [line for line in reply.iter_lines() if line.startswith("data: {")]
        chunks = [json.loads(line[6:]) for line in lines]
        frames = [c["choices"][0]["canvas"] for c in chunks if c["choices"][0].get("canvas")]
        assert [slot["token"] for slot in frames[-1]["slots"]] == text
        written = [
            [
                (len(prompt) + i, slot["token"])
                for i, slot in enumerate(frame["slots"])
                if slot["new"]
            ]
            for frame in frames[1:]
        ]
        end = len(prompt) + length
        kept = [[item for item in step if item[0] < end] for step in written]
        wanted = [
            [item for item in sorted(entry["committed"] + entry["replaced"]) if item[0] < end]
            for entry in trace
        ]
        assert [step for step in kept if step] == [step for step in wanted if step]


def test_an_infill_keeps_its_length(blocks):
    body = {"parts": ["1 2 3", 3, "4 5"]}
    reply = blocks.post("/v1/infill", json=body)
    assert reply.status_code == 200, reply.text
