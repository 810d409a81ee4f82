"""Dream 7B and DiffuCoder: Qwen2's network, bidirectional, with shifted logits.

Source: arXiv:2508.15487 and the released configuration. Traps: row i-1 predicts position i; q, k and v
have biases although no key says so; the mask id is the config's (`generation_config` leaves it null).
"""

from __future__ import annotations

from dataclasses import replace

from unmask.models.hf_config import OFF, SILU, Allowed, Config, ConfigReader, HubDefaults, hub_spec
from unmask.models.spec import ModelSpec

ARCHITECTURES = ("DreamModel", "DreamForCausalLM", "DreamBaseModel", "DreamPreTrainedModel")
MODEL_TYPES = ("Dream",)
MASK = "<|mask|>"
TURN_END = "<|im_end|>"
UNSUPPORTED_TOKENS = {"<|expand|>": "DreamOn inserts and deletes masks while it decodes"}

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

REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "hidden_act": SILU,
    "use_mrope": (False, None),
    "block_size": (None,),  # DreamReasoner: block-causal, and its logits are not shifted
}


DEFAULTS = HubDefaults(max_length=2048, mask_id=151666, eos_id=151643)


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of a Dream `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "Dream")
    reader.require(REQUIRED)
    spec = hub_spec(reader, "dream", DEFAULTS)
    return replace(spec, qkv_bias=True, shift_logits=True, turn_end=TURN_END)


def config_from_spec(spec: ModelSpec, dtype: str = "float32") -> dict[str, object]:
    """Build a `config.json` in Dream's own format that `spec_from_config` reads back to the same spec."""
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "attention_dropout": 0.0,
        "eos_token_id": spec.eos_id,
        "hidden_act": "silu",
        "hidden_size": spec.d_model,
        "initializer_range": 0.02,
        "intermediate_size": spec.d_ff,
        "mask_token_id": spec.mask_id,
        "max_position_embeddings": spec.max_length,
        "num_attention_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "num_key_value_heads": spec.num_kv_heads,
        "pad_token_id": spec.pad_id,
        "rms_norm_eps": spec.norm_eps,
        "rope_scaling": None,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tie_embeddings,
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "vocab_size": spec.vocab_size,
    }
