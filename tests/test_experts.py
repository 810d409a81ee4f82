"""The mixture of experts against a naive one, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model, tiny_spec

from unmask.models.experts import Bank, Experts
from unmask.models.spec import ExpertSpec
from unmask.models.transformer import Rotary

SOFTMAX = ExpertSpec(num_experts=8, num_chosen=2, d_ff=24, score="softmax", renormalize=False)
SIGMOID = ExpertSpec(
    num_experts=8,
    num_chosen=3,
    d_ff=24,
    score="sigmoid",
    renormalize=True,
    scale=2.5,
    num_groups=4,
    num_chosen_groups=2,
    router_bias=True,
    in_fp32=True,
    d_shared=16,
)
KINDS = {
    "softmax": SOFTMAX,
    "renormalized": replace(SOFTMAX, renormalize=True),
    "weighed_bias": replace(SOFTMAX, router_bias=True, is_bias_weighed=True),
    "sigmoid": SIGMOID,
    "one_of_each": replace(SIGMOID, num_groups=1, num_chosen_groups=1, num_chosen=8),
}


def layer_of(spec, seed=0):
    return tiny_model("llada", seed=seed, experts=spec).layers[1].ffn


def swiglu(gate, up, down, x):
    return down @ (F.silu(gate @ x) * (up @ x))


def naive(layer, spec, x):
    """One token, straight from the formulas of the families' papers."""
    logits = layer.router.weight @ x
    score = logits.sigmoid() if spec.score == "sigmoid" else logits.softmax(-1)
    choice = score if layer.router.bias is None else score + layer.router.bias
    size = spec.num_experts // spec.num_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(spec.num_groups)]

    def worth(group):
        return sum(sorted((float(choice[e]) for e in group), reverse=True)[:2])

    kept = sorted(groups, key=worth, reverse=True)[: spec.num_chosen_groups]
    allowed = [expert for group in kept for expert in group]
    chosen = sorted(allowed, key=lambda e: float(choice[e]), reverse=True)[: spec.num_chosen]
    weights = {e: float((choice if spec.is_bias_weighed else score)[e]) for e in chosen}
    if spec.renormalize:
        total = sum(weights.values())
        weights = {e: w / total for e, w in weights.items()}
    bank = layer.experts
    out = sum(
        weights[e]
        * spec.scale
        * swiglu(bank.gate.weight[e], bank.up.weight[e], bank.down.weight[e], x)
        for e in chosen
    )
    if layer.shared is not None:
        shared = layer.shared
        out = out + swiglu(shared.gate.weight, shared.up.weight, shared.down.weight, x)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_experts_equal_the_sum_token_by_token(kind):
    layer = layer_of(KINDS[kind])
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(5))
    wanted = torch.stack([naive(layer, KINDS[kind], token) for token in x.flatten(0, 1)])
    assert float((layer(x).flatten(0, 1) - wanted).abs().max()) <= 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_depend_on_its_neighbors(kind):
    layer = layer_of(KINDS[kind])
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(6))
    together = layer(x)
    for i in range(9):
        assert float((layer(x[i : i + 1]) - together[i]).abs().max()) <= 1e-5


def test_each_used_expert_multiplies_its_own_tokens_once(monkeypatch):
    layer, seen = layer_of(replace(SOFTMAX, num_experts=64)), []
    plain = Bank.apply_to

    def watched(self, expert, x):
        seen.append((expert, len(x)))
        return plain(self, expert, x)

    monkeypatch.setattr(Bank, "apply_to", watched)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
    layer(x)
    used = [expert for expert, _ in seen]
    assert used == sorted(set(used))
    assert len(used) <= 10
    assert sum(count for _, count in seen) == 5 * 2


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped product")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_give_the_sums_of_one_expert_after_the_other(kind, dtype):
    layer = layer_of(KINDS[kind]).to(dtype)
    x = torch.randn(21, 32, generator=torch.Generator().manual_seed(5)).to(dtype)
    weight, chosen = layer.router(x)
    grouped = layer.mix_grouped(x, weight, chosen)
    in_turn = layer.mix_in_turn(x, weight, chosen)
    assert layer.experts.can_group(x)
    assert grouped.dtype == in_turn.dtype == torch.float32
    assert float((grouped - in_turn).abs().max()) <= 1e-5


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped product")
def test_grouped_products_have_the_gradients_of_one_expert_after_the_other():
    layer = layer_of(SIGMOID).requires_grad_(True)
    x = torch.randn(11, 32, generator=torch.Generator().manual_seed(5))
    found = []
    for mix in (layer.mix_grouped, layer.mix_in_turn):
        layer.zero_grad()
        mix(x, *layer.router(x)).square().sum().backward()
        found.append([value.grad for value in layer.parameters() if value.grad is not None])
    assert len(found[0]) == len(found[1]) >= 4
    for grouped, in_turn in zip(*found, strict=True):
        assert torch.allclose(grouped, in_turn, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped product")
@pytest.mark.slow  # torch.compile loads and traces for half a minute
def test_a_layer_of_grouped_products_is_one_graph_for_any_choice():
    layer, graphs = layer_of(SIGMOID).bfloat16(), []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    mix = torch.compile(
        lambda x: layer.mix_grouped(x, *layer.router(x)), backend=keep, fullgraph=True
    )
    for seed in range(3):
        x = torch.randn(7, 32, generator=torch.Generator().manual_seed(seed)).bfloat16()
        assert float((mix(x) - layer.mix_in_turn(x, *layer.router(x))).abs().max()) <= 1e-5
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("dtype", "d_ff"), [(torch.float64, 24), (torch.bfloat16, 20)], ids=["float64", "unaligned"]
)
def test_matrices_that_the_grouped_product_cannot_take_are_multiplied_in_turn(dtype, d_ff):
    layer = layer_of(replace(SOFTMAX, d_ff=d_ff)).to(dtype)
    assert not layer.experts.can_group(torch.zeros(3, 32, dtype=dtype))


def test_no_token_gives_no_output():
    layer = layer_of(SIGMOID)
    assert layer(torch.zeros(0, 32)).shape == (0, 32)


def test_the_float32_sum_rounds_once():
    """In bfloat16 the two ways to sum differ; LLaDA2's is the nearer one to the exact sum."""
    spec = replace(SIGMOID, num_chosen=8, num_groups=1, num_chosen_groups=1, d_shared=0)
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(8))
    errors = {}
    for in_fp32 in (True, False):
        layer = Experts(32, replace(spec, in_fp32=in_fp32))
        layer.load_state_dict(layer_of(spec).state_dict())
        layer.requires_grad_(False)
        exact, low = layer.float()(x.bfloat16().float()), layer.bfloat16()(x.bfloat16())
        errors[in_fp32] = float((low.float() - exact).abs().mean())
    assert errors[True] < errors[False]


def test_rotating_a_part_of_a_head_leaves_the_rest():
    spec = tiny_spec("llada", rotary_dim=4)
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(9))
    turned = Rotary(torch.arange(6) + 2, spec, torch.float32)(x)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    small = replace(spec, rotary_dim=None, head_dim=4)
    alone = Rotary(torch.arange(6) + 2, small, torch.float32)(x[..., :4].contiguous())
    assert torch.equal(turned[..., :4], alone)


def test_a_partly_rotated_key_turns_on_as_if_it_had_been_there():
    spec = tiny_spec("llada", rotary_dim=4)
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(10))
    first = Rotary(torch.arange(6), spec, torch.float32)(x)
    moved = Rotary(torch.tensor([5]), spec, torch.float32)(first)
    there = Rotary(torch.arange(6) + 5, spec, torch.float32)(x)
    assert float((moved - there).abs().max()) <= 1e-5
