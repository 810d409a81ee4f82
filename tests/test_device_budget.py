"""Kernels, copies and waits of a steady forward on a GPU, counted on a pretend one, at a release's depth.

A forward of n equal layers costs a + b n. Both numbers come from two shallow networks that decode alike,
since their layers add nothing to the states.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from pretend import Counts, can_pretend, forwards, pretend, to_device
from tiny import StubTokenizer, confidences_of, tiny_model, trace_of

from unmask import LLM
from unmask.engine.static_step import StaticForwards
from unmask.models.spec import ExpertSpec
from unmask.models.transformer import fuse_products

pytestmark = pytest.mark.skipif(not can_pretend(), reason="no C++ compiler for the device guard")

ROOT = Path(__file__).parents[1]
MOE = ExpertSpec(num_experts=64, num_chosen=8, d_ff=8, score="softmax", renormalize=False)
MINI = ExpertSpec(
    num_experts=256,
    num_chosen=8,
    d_ff=8,
    score="sigmoid",
    renormalize=True,
    scale=2.5,
    num_groups=8,
    num_chosen_groups=4,
    router_bias=True,
    in_fp32=True,
    d_shared=8,
    dense_layers=(0,),
)
RELEASES = {
    "llada-8b": (32, {}),
    "dream-7b": (28, {"family": "dream"}),
    "sdar-8b": (
        36,
        {
            "num_kv_heads": 1,
            "qk_norm": True,
            "norm_fp32": True,
            "rope_fp32": False,
            "block_size": 4,
        },
    ),
    "llada-moe": (16, {"qk_norm": True, "experts": MOE}),
    "llada2-mini": (
        20,
        {
            "num_kv_heads": 1,
            "qk_norm": True,
            "rotary_dim": 4,
            "block_size": 32,
            "experts": MINI,
        },
    ),
}
"""Number of layers and structure of released models; widths are tiny, and weights bfloat16."""


def llm_of(name: str, num_layers: int) -> LLM:
    changes = {**RELEASES[name][1], "num_layers": num_layers}
    model = tiny_model(changes.pop("family", "llada"), **changes).bfloat16()
    for layer in model.layers:
        layer.attn.o.weight.zero_()
        if (down := getattr(layer.ffn, "down", None)) is not None:
            down.weight.zero_()
        else:
            layer.ffn.experts.down.weight.zero_()
            if layer.ffn.shared is not None:
                layer.ffn.shared.down.weight.zero_()
    to_device(model)
    with pretend():
        fuse_products(model)  # as `LLM` does with a model that it loads
        return LLM(model, tokenizer=StubTokenizer())


def steady(name: str, num_layers: int, batch: int, is_ragged: bool, **method: object) -> Counts:
    """Return the counts of the fourth forward."""
    llm = llm_of(name, num_layers)
    block = llm.spec.block_size or 32
    sizes = [10 + 3 * row * is_ragged for row in range(batch)]
    prompts = [" ".join(str(i % 50) for i in range(size)) for size in sizes]
    method = {"gen_length": 2 * block, "block_length": block, "threshold": 0.99, **method}
    method["stop_at_eos"] = False  # all rows are still there
    return forwards(llm, prompts, 4, **method)[-1]


@dataclass(frozen=True)
class Figures:
    """A steady forward at full depth."""

    launches: int
    syncs: int
    a_layer: int
    shallow: Counts


def measure(name: str, batch: int = 1, is_ragged: bool = False, **method: object) -> Figures:
    first, second = (steady(name, n, batch, is_ragged, **method) for n in (2, 3))
    more = RELEASES[name][0] - 2
    launches, syncs = second.launches - first.launches, second.syncs - first.syncs
    return Figures(first.launches + more * launches, first.syncs + more * syncs, launches, second)


BUDGETS = {
    ("llada-8b", "dual", 1, False): (650, 1),
    ("llada-8b", "dual", 16, True): (650, 1),
    ("llada-8b", "dllm", 1, False): (1740, 1),
    ("llada-8b", "dllm", 16, True): (1750, 1),
    ("llada-8b", "d2cache", 1, False): (1150, 1),
    ("llada-8b", "d2cache", 16, True): (1350, 1),
    ("dream-7b", "dual", 1, False): (580, 1),
    ("sdar-8b", "block_causal", 1, False): (760, 1),
    ("sdar-8b", "block_causal", 16, True): (1220, 1),
    ("llada-moe", "dual", 1, False): (700, 1),
    ("llada2-mini", "block_causal", 1, False): (1200, 1),
}
"""The most launches and waits of a steady forward, by release, cache, batch and raggedness."""


@pytest.mark.parametrize("case", BUDGETS, ids=lambda case: "-".join(map(str, case)))
def test_a_steady_forward_stays_within_its_budget_and_on_fast_attention(case):
    name, cache, batch, is_ragged = case
    found = measure(name, batch, is_ragged, decoder="threshold", cache=cache)
    assert all(call.kernel != "math" for call in found.shallow.attentions)
    assert found.launches <= BUDGETS[case][0]
    assert found.syncs <= BUDGETS[case][1]
    assert found.launches >= RELEASES[name][0] * 12, "the counter has missed operations"


def test_the_page_on_performance_has_the_budgets():
    page = (ROOT / "docs/reference/performance.md").read_text()
    rows = re.findall(r"^\|.*\| ([\d,]+) \| (\d+) \|$", page, re.MULTILINE)
    assert [(int(a.replace(",", "")), int(b)) for a, b in rows] == list(BUDGETS.values())


@pytest.mark.parametrize("cache", ["none", "dual", "d2cache", "dllm"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_no_attention_of_rows_of_unequal_length_falls_to_the_math_kernel(family, cache):
    """With a mask and grouped heads no fast kernel exists, and an unaligned mask is copied anew."""
    model = to_device(tiny_model(family))
    prompts = ["1 2 3", "4 5 6 7 8 9", "7 8"]
    method = {"gen_length": 16, "block_length": 8, "decoder": "wino", "cache": cache}
    with pretend():
        llm = LLM(model, tokenizer=StubTokenizer())
    counts = forwards(llm, prompts, 5, **method)
    calls = [call for each in counts for call in each.attentions]
    assert calls
    assert {call.kernel for call in calls} <= {"flash", "efficient"}
    assert all(call.is_aligned and call.mask_dtype != torch.bool for call in calls if call.mask)


@pytest.mark.parametrize(
    ("decoder", "cache", "more"),
    [
        ("threshold", "dual", {"threshold": 0.05}),
        ("threshold", "prefix", {"threshold": 0.05, "cfg_scale": 0.5}),
        ("threshold", "dkv", {"threshold": 0.05}),
        ("wino", "dual", {}),
        ("wino", "vicinity", {}),
    ],
)
def test_rows_that_are_no_neighbors_share_a_call_and_decode_as_on_the_cpu(decoder, cache, more):
    """On the CPU they do not: there a copy of keys and values takes longer than a call."""
    changes = {"num_heads": 4, "num_kv_heads": 2}
    prompts = [" ".join(str(k % 50) for k in range(n)) for n in (3, 9, 4, 12, 3, 7)]
    method = {"decoder": decoder, "cache": cache, "gen_length": 24, "block_length": 8, **more}
    model = to_device(tiny_model(**changes))
    with pretend():
        llm = LLM(model, tokenizer=StubTokenizer())
        llm.cuda_graphs = False
        found = llm.generate(prompts, return_trace=True, **method)
    expected = LLM(tiny_model(**changes), tokenizer=StubTokenizer())
    for own, other in zip(
        found, expected.generate(prompts, return_trace=True, **method), strict=True
    ):
        assert trace_of(own) == trace_of(other)
        assert confidences_of(own) == pytest.approx(confidences_of(other), abs=1e-6)


STATIC_BUDGETS = {
    ("llada-8b", "dual", 1, False): (18, 640),
    ("llada-8b", "dual", 16, True): (18, 640),
    ("dream-7b", "dual", 16, True): (20, 630),  # with a mask, grouped heads are folded
    ("sdar-8b", "block_causal", 16, True): (21, 830),  # the norms of queries and keys
    ("llada2-mini", "block_causal", 1, False): (60, 1230),
}
"""The most launches of a layer and of a whole forward of fixed shapes, before it is captured."""


@pytest.mark.parametrize("case", STATIC_BUDGETS, ids=lambda case: "-".join(map(str, case)))
def test_a_forward_of_fixed_shapes_stays_within_its_budget(case):
    """A CUDA graph launches all of it at once; these are the kernels that it then runs."""
    name, cache, batch, is_ragged = case
    shapes = []

    def plain(step, example):
        shapes.append(tuple(example.shape))
        return step

    found = measure(name, batch, is_ragged, decoder="threshold", cache=cache, capture=plain)
    assert shapes
    assert all(call.kernel != "math" for call in found.shallow.attentions)
    assert found.a_layer <= STATIC_BUDGETS[case][0]
    assert found.launches <= STATIC_BUDGETS[case][1]
    assert found.syncs <= 1


def test_more_rows_take_no_more_launches():
    """Outside of the layers too: their proposals are copied together."""

    def launches(batch):
        method = {"decoder": "threshold", "cache": "dual", "capture": lambda step, example: step}
        return steady("llada-8b", 2, batch, is_ragged=False, **method).launches

    assert launches(16) <= launches(2) <= launches(1) + 2


PAGED_BUDGETS = {
    ("sdar-8b", 1, False): (23, 910),  # norms of queries and keys, folded heads, two gathers
    ("sdar-8b", 16, True): (23, 910),
    ("llada2-mini", 1, False): (61, 1270),  # most of them choose and run experts
    ("llada2-mini", 16, True): (61, 1270),
}
"""The same for rows in pages, by release, batch and raggedness."""


@pytest.mark.parametrize("case", PAGED_BUDGETS, ids=lambda case: "-".join(map(str, case)))
def test_a_forward_of_fixed_shapes_over_pages_stays_within_its_budget(case):
    """All that its step needs is in one copy, and the host waits for nothing."""
    name, batch, is_ragged = case
    each, plain = [], StaticForwards.run

    def counted(self, *args):
        with pretend() as counts:
            result = plain(self, *args)
        each.append(counts)
        return result

    method = {"decoder": "threshold", "cache": "block_causal", "has_pages": True}
    method["capture"] = lambda step, example: step
    found = measure(name, batch, is_ragged, **method)
    assert found.a_layer <= PAGED_BUDGETS[case][0]
    assert found.launches <= PAGED_BUDGETS[case][1]
    assert found.syncs <= 1
    assert {call.kernel for call in found.shallow.attentions} == {"efficient"}
    with mock.patch.object(StaticForwards, "run", counted):
        steady(name, 2, batch, is_ragged, **method)
    assert len(each) == 4
    assert {(counts.syncs, counts.pinned_to_device) for counts in each} == {(0, 1)}


METHODS = {
    "threshold": {},
    "eb_sampler": {},
    "wino": {},
    "credit": {},
    "sampled": {"decoder": "threshold", "seed": 3, "temperature": 1.0, "top_p": 0.9, "top_k": 20},
    "d2cache": {"decoder": "threshold", "cache": "d2cache"},
    "dllm": {"decoder": "threshold", "cache": "dllm"},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_host_waits_once_a_forward_and_decodes_as_on_the_cpu(name):
    """The one wait is for the proposals; all copies are queued, from pinned memory and into it."""
    method = {"decoder": name, "gen_length": 16, "block_length": 8, **METHODS[name]}
    prompts, model = ["1 2 3", "4 5 6 7 8 9"], to_device(tiny_model())
    with pretend():
        llm = LLM(model, tokenizer=StubTokenizer())
        llm.cuda_graphs = False
        found = llm.generate(prompts, **method)
    expected = LLM(tiny_model(), tokenizer=StubTokenizer()).generate(prompts, **method)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    counts = forwards(llm, prompts, 4, **method)
    assert {(each.pinned_to_host, each.waits, each.syncs) for each in counts} == {(1, 1, 1)}
    assert all(each.pinned_to_device for each in counts)
