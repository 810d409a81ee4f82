"""The public oracle: transformers' own Llama and Qwen2 classes with the same weights.

Their masks must be explicit: None is causal there, and eager attention adds a bool mask as 0 and 1.
"""

from __future__ import annotations

import re

import pytest
import torch
from tiny import tiny_model

ATOL = 5e-5
IMPLEMENTATIONS = ("sdpa", "eager")
FAMILIES = ("llada", "dream")
NATIVE = (
    (r"embed\.(\w+)", r"model.embed_tokens.\1"),
    (r"norm\.(\w+)", r"model.norm.\1"),
    (r"lm_head\.(\w+)", r"lm_head.\1"),
    (r"layers\.(\d+)\.attn_norm\.(\w+)", r"model.layers.\1.input_layernorm.\2"),
    (r"layers\.(\d+)\.ffn_norm\.(\w+)", r"model.layers.\1.post_attention_layernorm.\2"),
    (r"layers\.(\d+)\.attn\.([qkvo])\.(\w+)", r"model.layers.\1.self_attn.\2_proj.\3"),
    (r"layers\.(\d+)\.ffn\.(\w+)\.(\w+)", r"model.layers.\1.mlp.\2_proj.\3"),
)


def native_name(ours):
    for pattern, theirs in NATIVE:
        if re.fullmatch(pattern, ours):
            return re.sub(pattern, theirs, ours)
    raise AssertionError(ours)


def native(model, implementation):
    """transformers' model of the same network: Qwen2 for Dream, Llama for LLaDA."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

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
    if spec.family == "dream":
        other = Qwen2ForCausalLM(Qwen2Config(**values))
    else:
        other = LlamaForCausalLM(
            LlamaConfig(**values, head_dim=spec.head_dim, attention_bias=False, mlp_bias=False)
        )
    state = {native_name(name): value for name, value in model.named_parameters()}
    missing, unexpected = other.load_state_dict(state, strict=False)
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
    return parity_model(request.param)


@pytest.fixture(scope="module")
def ids(model):
    generator = torch.Generator().manual_seed(17)
    some = torch.randint(5, 950, (3, 29), generator=generator)
    some[:, 11:20] = model.spec.mask_id
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
@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_queries_and_tied_heads_agree(family, changes):
    small = tiny_model(family, seed=5, **changes)
    few = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(2))
    everyone = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    wanted = theirs(small, few, everyone, torch.arange(11).expand(2, -1), "sdpa")
    assert float((small(few) - wanted).abs().max()) <= ATOL
