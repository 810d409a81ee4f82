"""A CUDA device gives the CPU's results: logits, golden decodes, every decoder and cache, proposals.

`make gpu-test` runs this file. It skips without a GPU; UNMASK_TEST_DEVICE names another device, and with
"cpu" the file tests itself. Warnings are no errors here: CUDA warns where the CPU does not.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_engine import alone, submit_all
from test_engine import assert_same as assert_same_output
from test_golden import FILES, cases_of, check, run
from test_properties import CACHES, METHODS, PROMPTS, generate
from tiny import FAMILIES, StubTokenizer, tiny_model, trace_of

from unmask import LLM
from unmask.engine.engine import Engine
from unmask.models import load_model
from unmask.sampling.transfer import Download

DEVICE = os.environ.get("UNMASK_TEST_DEVICE", "cuda")
PARITY = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")
BLOCKS = {"llada2_moe": 16, "sdar": 4, "fast_dllm_v2": 32}
"""Block-causal families with a block size that the tests use; the mask id of their fixtures is 1004."""
ATOL = 2e-4
"""Absolute tolerance of logits in float32: cuBLAS and cuDNN add up in another order."""

if DEVICE.startswith("cuda") and not torch.cuda.is_available():
    pytest.skip("no CUDA device is visible", allow_module_level=True)
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True, scope="module")
def full_float32():
    """TF32 has 10 bits of mantissa: no comparison with a CPU holds with it."""
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def two_llms(family, seed=0, **changes):
    """The same random model on the CPU and on the device."""
    here = tiny_model(family, seed, **changes)
    there = copy.deepcopy(here).to(DEVICE)
    return LLM(here, tokenizer=StubTokenizer()), LLM(there, tokenizer=StubTokenizer())


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert trace_of(one) == trace_of(other)
        assert one.canvas_ids == other.canvas_ids
        assert (one.num_forwards, one.num_queries) == (other.num_forwards, other.num_queries)


@pytest.mark.parametrize("family", PARITY)
def test_logits_are_those_of_the_cpu(family, parity_folder, parity_model):
    ids = load_file(parity_folder(family) / "inputs.safetensors")["full.input_ids"]
    model = load_model(parity_folder(family), "float32", DEVICE)
    with torch.inference_mode():
        ours, theirs = model(ids.to(DEVICE)).cpu(), parity_model(family)(ids)
    assert float((ours - theirs).abs().max()) <= ATOL


@pytest.mark.parametrize("family", PARITY)
def test_bfloat16_stays_near_float32(family, parity_folder, parity_model):
    ids = load_file(parity_folder(family) / "inputs.safetensors")["full.input_ids"]
    model = load_model(parity_folder(family), "bfloat16", DEVICE)
    with torch.inference_mode():
        ours, theirs = model(ids.to(DEVICE)).float().cpu(), parity_model(family)(ids)
    assert float((ours - theirs).abs().mean()) <= 0.05 * float(theirs.abs().mean())


@pytest.fixture(scope="module")
def golden_on_device(golden_llm):
    folder = golden_llm.name
    return LLM(folder, dtype="float32", device=DEVICE)


@pytest.mark.parametrize("name", FILES)
def test_golden_decodes_are_token_exact(name, golden_on_device):
    cases = [case for case in cases_of(name) if case["call"] == cases_of(name)[0]["call"]][:2]
    for case, output in zip(cases, run(golden_on_device, cases, cases[0]["call"]), strict=True):
        check(case, output)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("name", "knobs"), METHODS, ids=lambda value: str(value))
def test_every_decoder_and_cache_decodes_as_on_the_cpu(name, knobs, cache, family):
    here, there = two_llms(family)
    assert_same(
        generate(there, PROMPTS[:3], name, cache, knobs, max_batch_size=2),
        generate(here, PROMPTS[:3], name, cache, knobs, max_batch_size=2),
    )


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("cache", ["block_causal", "dual", "none"])
def test_block_causal_families_decode_as_on_the_cpu(family, cache, parity_folder, parity_model):
    outputs = []
    for model in (load_model(parity_folder(family), "float32", DEVICE), parity_model(family)):
        model = copy.copy(model)
        model.spec = replace(model.spec, mask_id=1004, block_size=BLOCKS[family])
        outputs.append(
            LLM(model).generate(
                [[7, 8, 9], [10] * 21, [5]], "threshold", cache, gen_length=32, threshold=0.6,
                stop_at_eos=False, return_trace=True,
            )
        )  # fmt: skip
    assert_same(*outputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_an_engine_with_pages_decodes_as_on_the_cpu(cfg_scale, family):
    here, there = two_llms(family, block_size=4)
    requests = [
        here.request(
            prompt, "threshold", "block_causal", gen_length=24, threshold=0.5, cfg_scale=cfg_scale
        )
        for prompt in PROMPTS
    ]
    with Engine(there) as engine:
        outputs = [listener.last.output for listener in submit_all(engine, requests)]
    for request, output in zip(requests, outputs, strict=True):
        assert_same_output(output, alone(here, request))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 8, "top_p": 0.9},
        {"temperature": 0.5, "min_p": 0.1},
        {"cfg_scale": 1.5},
        {"vocabulary": "static", "vocab_size": 32},
        {"vocabulary": "union", "vocab_size": 16},
    ],
    ids=str,
)
def test_proposals_are_those_of_the_cpu(sampling):
    here, there = two_llms("llada")
    outputs = [
        llm.generate(
            PROMPTS[:3], "threshold", gen_length=12, seed=5, stop_at_eos=False, return_trace=True,
            **sampling,
        )
        for llm in (there, here)
    ]  # fmt: skip
    assert_same(*outputs)


@pytest.mark.parametrize("cache", ["none", "dual", "block_causal"])
def test_a_row_decodes_as_it_does_alone(cache):
    _, llm = two_llms("llada", **({"block_size": 4} if cache == "block_causal" else {}))
    together = generate(llm, PROMPTS, "threshold", cache, {})
    alone = [generate(llm, [prompt], "threshold", cache, {})[0] for prompt in PROMPTS]
    assert_same(together, alone)


@pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="only CUDA counts synchronizations")
def test_a_forward_waits_for_the_device_a_bounded_number_of_times(recwarn):
    _, llm = two_llms("llada")
    generate(llm, PROMPTS[:2], "threshold", "dual", {})
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        outputs = generate(llm, PROMPTS[:2], "threshold", "dual", {}, gen_length=32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(warning.message) for warning in recwarn)
    assert waits <= 8 * sum(output.num_forwards for output in outputs) + 16


@pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="only CUDA counts its memory")
@pytest.mark.parametrize("family", PARITY)
def test_loading_needs_little_more_than_the_weights(family, parity_folder):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = load_model(parity_folder(family), "float32", DEVICE)
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    assert torch.cuda.max_memory_allocated() - before <= 1.1 * size + (2 << 20)


def test_an_engine_sends_the_updates_that_it_sends_on_the_cpu():
    """On CUDA during the next forward, from proposals in pinned memory."""
    found = []
    for llm in two_llms("llada"):
        requests = [llm.request(prompt, "threshold", "dual", gen_length=8) for prompt in PROMPTS]
        with Engine(llm) as engine:
            listeners = submit_all(engine, requests)
            assert [listener.last.kind for listener in listeners] == ["done"] * len(PROMPTS)
        found.append(
            [
                [
                    (u.kind, u.num_forwards, u.num_settled, u.canvas.tokens.tolist())
                    for u in told.updates
                ]
                for told in listeners
            ]
        )
    assert found[0] == found[1]
    values = torch.arange(3.0, dtype=torch.float64, device=DEVICE)
    download = Download(values)
    assert download.wait().tolist() == [0.0, 1.0, 2.0]
    assert download._values.is_pinned() == values.is_cuda
