"""The public oracle: transformers' own classes with the same weights.

Qwen2 for Dream and Fast-dLLM v2, Llama for LLaDA, Qwen3 for SDAR, Qwen3-MoE for LLaDA-MoE (without
renormalizing) and SDAR's experts (with), GLM-4-MoE for LLaDA2. Their masks must be explicit: None is causal
there, and eager attention adds a bool mask as 0 and 1.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model

from unmask.models.spec import ExpertSpec

ATOL = 5e-5
IMPLEMENTATIONS = ("sdpa", "eager")
FAMILIES = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")
NATIVE = (
    (r"embed\.(\w+)", r"model.embed_tokens.\1"),
    (r"norm\.(\w+)", r"model.norm.\1"),
    (r"lm_head\.(\w+)", r"lm_head.\1"),
    (r"layers\.(\d+)\.attn_norm\.(\w+)", r"model.layers.\1.input_layernorm.\2"),
    (r"layers\.(\d+)\.ffn_norm\.(\w+)", r"model.layers.\1.post_attention_layernorm.\2"),
    (r"layers\.(\d+)\.attn\.([qkvo])\.(\w+)", r"model.layers.\1.self_attn.\2_proj.\3"),
    (r"layers\.(\d+)\.attn\.([qk])_norm\.(\w+)", r"model.layers.\1.self_attn.\2_norm.\3"),
    (r"layers\.(\d+)\.ffn\.router\.weight", r"model.layers.\1.mlp.gate.weight"),
    (r"layers\.(\d+)\.ffn\.router\.bias", r"model.layers.\1.mlp.gate.e_score_correction_bias"),
    (r"layers\.(\d+)\.ffn\.shared\.(\w+)\.(\w+)", r"model.layers.\1.mlp.shared_experts.\2_proj.\3"),
    (r"layers\.(\d+)\.ffn\.experts\.down\.weight", r"model.layers.\1.mlp.experts.down_proj"),
    (r"layers\.(\d+)\.ffn\.(\w+)\.(\w+)", r"model.layers.\1.mlp.\2_proj.\3"),
)


def native_name(ours):
    for pattern, theirs in NATIVE:
        if re.fullmatch(pattern, ours):
            return re.sub(pattern, theirs, ours)
    raise AssertionError(ours)


def native_state(model):
    """Our parameters by transformers' names; it keeps an expert's gate and up in one tensor."""
    ours = dict(model.named_parameters())
    state = {}
    for name, value in ours.items():
        if name.endswith("experts.gate.weight"):
            up = ours[name.replace("gate", "up")]
            layer = name.split(".")[1]
            state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat((value, up), dim=1)
        elif not name.endswith("experts.up.weight"):
            state[native_name(name)] = value
    return state


def qwen3_moe(values, spec):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = spec.experts
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **values,
            head_dim=spec.head_dim,
            num_experts=experts.num_experts,
            num_experts_per_tok=experts.num_chosen,
            moe_intermediate_size=experts.d_ff,
            norm_topk_prob=experts.renormalize,
            mlp_only_layers=list(experts.dense_layers),
            attention_bias=False,
        )
    )


def glm4_moe(values, spec):
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    experts = spec.experts
    values["rope_parameters"]["partial_rotary_factor"] = spec.rotary_dim / spec.head_dim
    return Glm4MoeForCausalLM(
        Glm4MoeConfig(
            **values,
            head_dim=spec.head_dim,
            use_qk_norm=True,
            attention_bias=False,
            n_routed_experts=experts.num_experts,
            num_experts_per_tok=experts.num_chosen,
            moe_intermediate_size=experts.d_ff,
            n_shared_experts=experts.d_shared // experts.d_ff,
            routed_scaling_factor=experts.scale,
            n_group=experts.num_groups,
            topk_group=experts.num_chosen_groups,
            first_k_dense_replace=len(experts.dense_layers),
            norm_topk_prob=experts.renormalize,
        )
    )


def native(model, implementation):
    """transformers' model of the same network."""
    import transformers as hf

    spec = model.spec
    values = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ff,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "max_position_embeddings": spec.max_length,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "tie_word_embeddings": spec.tie_embeddings,
        "attn_implementation": implementation,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if spec.experts is not None and spec.experts.score == "sigmoid":
        other = glm4_moe(values, spec)
    elif spec.experts is not None:
        other = qwen3_moe(values, spec)
    elif spec.qk_norm:
        other = hf.Qwen3ForCausalLM(
            hf.Qwen3Config(**values, head_dim=spec.head_dim, attention_bias=False)
        )
    elif spec.qkv_bias:
        other = hf.Qwen2ForCausalLM(hf.Qwen2Config(**values))
    else:
        other = hf.LlamaForCausalLM(
            hf.LlamaConfig(**values, head_dim=spec.head_dim, attention_bias=False, mlp_bias=False)
        )
    missing, unexpected = other.load_state_dict(native_state(model), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if spec.tie_embeddings else set())
    return other.eval()


def additive(visible):
    """A float mask: 0 where a query sees a key, a very negative number elsewhere."""
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape).masked_fill(~visible, hidden)


@torch.no_grad()
def theirs(model, ids, visible, positions, implementation):
    mask = additive(visible.expand(len(ids), 1, -1, -1))
    return native(model, implementation)(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, parity_model):
    """The network; who sees whom is the test's business, so a family's blocks are left out."""
    found = copy(parity_model(request.param))
    found.spec = replace(found.spec, block_size=None)
    return found


@pytest.fixture(scope="module")
def ids(model):
    generator = torch.Generator().manual_seed(17)
    some = torch.randint(5, 950, (3, 29), generator=generator)
    some[:, 11:20] = 1004  # the mask, which three of the released configs do not name
    return some


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_full_attention_agrees(implementation, model, ids):
    positions = torch.arange(29).expand(3, -1)
    everyone = torch.ones(1, 1, 29, 29, dtype=torch.bool)
    wanted = theirs(model, ids, everyone, positions, implementation)
    assert float((model(ids) - wanted).abs().max()) <= ATOL
    causal = theirs(model, ids, everyone.tril(), positions, implementation)
    assert float((model(ids) - causal).abs().max()) > 1, (
        "the comparison would not see a causal mask"
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_random_4d_mask_agrees(implementation, model, ids):
    positions = torch.arange(29).expand(3, -1)
    generator = torch.Generator().manual_seed(4)
    visible = torch.rand(3, 1, 29, 29, generator=generator) < 0.4
    visible |= torch.eye(29, dtype=torch.bool)
    wanted = theirs(model, ids, visible, positions, implementation)
    assert float((model(ids, visible) - wanted).abs().max()) <= ATOL


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_agrees_on_real_rows(side, model, ids):
    real = torch.ones(3, 29, dtype=torch.bool)
    for row, count in ((1, 4), (2, 13)):
        real[row, slice(count) if side == "left" else slice(29 - count, None)] = False
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    wanted = theirs(model, ids, real[:, None, None, :].expand(3, 1, 29, 29), positions, "sdpa")
    assert float((model(ids, real) - wanted)[real].abs().max()) <= ATOL


def test_given_positions_agree(model, ids):
    positions = torch.arange(29).flip(0).expand(3, -1) * 3 + 5
    everyone = torch.ones(1, 1, 29, 29, dtype=torch.bool)
    wanted = theirs(model, ids, everyone, positions, "sdpa")
    assert float((model(ids, position_ids=positions) - wanted).abs().max()) <= ATOL


@pytest.mark.parametrize(
    "changes", [{"num_kv_heads": 2}, {"num_kv_heads": 1}, {"tie_embeddings": True}]
)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_grouped_queries_and_tied_heads_agree(family, changes):
    small = tiny_model(family, seed=5, **changes)
    few = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(2))
    everyone = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    wanted = theirs(small, few, everyone, torch.arange(11).expand(2, -1), "sdpa")
    assert float((small(few) - wanted).abs().max()) <= ATOL


SOFTMAX = ExpertSpec(num_experts=7, num_chosen=3, d_ff=24, score="softmax", renormalize=True)
SIGMOID = ExpertSpec(
    num_experts=12,
    num_chosen=4,
    d_ff=24,
    score="sigmoid",
    renormalize=True,
    scale=2.5,
    num_groups=4,
    num_chosen_groups=2,
    router_bias=True,
    in_fp32=True,
    d_shared=24,
    dense_layers=(0,),
)
EXPERTS = {
    "qwen3_moe": SOFTMAX,
    "without_renormalizing": replace(SOFTMAX, renormalize=False),
    "first_layer_dense": replace(SOFTMAX, dense_layers=(0,)),
    "glm4_moe": SIGMOID,
    "one_group": replace(SIGMOID, num_groups=1, num_chosen_groups=1),
    "two_shared": replace(SIGMOID, d_shared=48),
    "all_dense_but_one": replace(SIGMOID, dense_layers=(0, 1)),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_agree(kind):
    changes = {"experts": EXPERTS[kind], "qk_norm": True, "rope_fp32": False, "num_layers": 3}
    small = tiny_model(
        "llada", seed=8, rotary_dim=4 if changes["experts"].score == "sigmoid" else 8, **changes
    )
    few = torch.randint(0, 60, (2, 31), generator=torch.Generator().manual_seed(3))
    everyone = torch.ones(1, 1, 31, 31, dtype=torch.bool)
    wanted = theirs(small, few, everyone, torch.arange(31).expand(2, -1), "sdpa")
    assert float((small(few) - wanted).abs().max()) <= ATOL
