"""Dream 7B and DiffuCoder: Qwen2's network, bidirectional, with shifted logits.

Source: arXiv:2508.15487 and the released configuration. Traps: row i-1 predicts position i; q, k and v
have biases although no key says so; the mask id is the config's (`generation_config` leaves it null).
"""

from __future__ import annotations

from typing import Any

from unmask.models._config import Fields
from unmask.models.spec import ModelSpec

ARCHITECTURES = ("DreamModel", "DreamForCausalLM")
MODEL_TYPES = ("Dream",)
MASK = "<|mask|>"

NAMES = (
    ("model.embed_tokens.{p}", "embed.{p}"),
    ("model.norm.{p}", "norm.{p}"),
    ("lm_head.{p}", "lm_head.{p}"),
    ("model.layers.{i}.input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
    ("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.ffn_norm.{p}"),
    ("model.layers.{i}.self_attn.q_proj.{p}", "layers.{i}.attn.q.{p}"),
    ("model.layers.{i}.self_attn.k_proj.{p}", "layers.{i}.attn.k.{p}"),
    ("model.layers.{i}.self_attn.v_proj.{p}", "layers.{i}.attn.v.{p}"),
    ("model.layers.{i}.self_attn.o_proj.{p}", "layers.{i}.attn.o.{p}"),
    ("model.layers.{i}.mlp.gate_proj.{p}", "layers.{i}.ffn.gate.{p}"),
    ("model.layers.{i}.mlp.up_proj.{p}", "layers.{i}.ffn.up.{p}"),
    ("model.layers.{i}.mlp.down_proj.{p}", "layers.{i}.ffn.down.{p}"),
)

REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
}


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """The spec of a Dream `config.json`. Raises ModelError for missing or unsupported keys."""
    get = Fields(config, "Dream")
    get.require(REQUIRED)
    d_model, num_heads = get.int("hidden_size"), get.int("num_attention_heads")
    num_kv_heads = get.int("num_key_value_heads", num_heads)
    eos_id = get.int("eos_token_id", 151643, least=0)
    return ModelSpec(
        family="dream",
        vocab_size=get.int("vocab_size"),
        d_model=d_model,
        num_layers=get.int("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=get.head_dim(d_model, num_heads, num_kv_heads),
        d_ff=get.int("intermediate_size"),
        rope_theta=get.rope_theta(10000.0),
        norm_eps=get.float("rms_norm_eps", 1e-6),
        max_length=get.int("max_position_embeddings", 2048),
        mask_id=get.int("mask_token_id", 151666, least=0),
        eos_id=eos_id,
        pad_id=get.int("pad_token_id", eos_id, least=0),
        qkv_bias=True,
        tie_embeddings=bool(config.get("tie_word_embeddings")),
        shift_logits=True,
        turn_end="<|im_end|>",
    )
