"""Dream 7B and DiffuCoder: Qwen2's network, bidirectional, with shifted logits.

Source: arXiv:2508.15487 and the released configuration. Traps: row i-1 predicts position i; q, k and v
have biases although no key says so; the mask id is the config's (`generation_config` leaves it null).
"""

from __future__ import annotations

from typing import Any

from unmask.models._config import Fields, hub_spec
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
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
}


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """The spec of a Dream `config.json`. Raises ModelError for missing or unsupported keys."""
    get = Fields(config, "Dream")
    get.require(REQUIRED)
    return hub_spec(
        get,
        family="dream",
        max_length=2048,
        mask_id=151666,
        eos_id=151643,
        qkv_bias=True,
        shift_logits=True,
        turn_end="<|im_end|>",
    )
