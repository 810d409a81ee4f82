"""LLaDA: 8B Base and Instruct, LLaDA-1.5, and the dense variants its config can describe.

Source: arXiv:2502.09992 and the released configuration. Traps: `ff_proj` is the gate, a block's
`ff_out` the down projection, `transformer.ff_out` the LM head; rows are `embedding_size`, not the
tokenizer's length; MoE checkpoints have the same `model_type` and differ in `architectures`.
No released LLaDA is block-causal: the key `block_size` is written by our trainer.
"""

from __future__ import annotations

from unmask.errors import ModelError
from unmask.models.hf_config import OFF, SILU, Allowed, Config, ConfigReader
from unmask.models.spec import ModelSpec

ARCHITECTURES = ("LLaDAModelLM", "LLaDAModel", "LLaDAPreTrainedModel")
MODEL_TYPES = ("llada",)
MASK = "<|mdm_mask|>"

# checkpoint name, our name; {i} is the layer, {p} is weight or bias
NAMES = (
    ("model.transformer.wte.{p}", "embed.{p}"),
    ("model.transformer.ln_f.{p}", "norm.{p}"),
    ("model.transformer.ff_out.{p}", "lm_head.{p}"),
    ("model.transformer.blocks.{i}.attn_norm.{p}", "layers.{i}.attn_norm.{p}"),
    ("model.transformer.blocks.{i}.ff_norm.{p}", "layers.{i}.ffn_norm.{p}"),
    ("model.transformer.blocks.{i}.q_proj.{p}", "layers.{i}.attn.q.{p}"),
    ("model.transformer.blocks.{i}.k_proj.{p}", "layers.{i}.attn.k.{p}"),
    ("model.transformer.blocks.{i}.v_proj.{p}", "layers.{i}.attn.v.{p}"),
    ("model.transformer.blocks.{i}.attn_out.{p}", "layers.{i}.attn.o.{p}"),
    ("model.transformer.blocks.{i}.ff_proj.{p}", "layers.{i}.ffn.gate.{p}"),
    ("model.transformer.blocks.{i}.up_proj.{p}", "layers.{i}.ffn.up.{p}"),
    ("model.transformer.blocks.{i}.ff_out.{p}", "layers.{i}.ffn.down.{p}"),
)

# keys whose other values change the network in a way that is not supported
REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "rope": (True,),
    "scale_logits": (False, None),
    "block_group_size": (1, None),
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True, None),
    "attention_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "activation_type": SILU,
    "clip_qkv": (None,),
}


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of a LLaDA `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "LLaDA")
    reader.require(REQUIRED)
    d_model, num_heads = reader.integer("d_model"), reader.integer("n_heads")
    multi_query = reader.flag("multi_query_attention")
    num_kv_heads = reader.integer("n_kv_heads", 1 if multi_query else num_heads)
    if multi_query and num_kv_heads != 1:
        raise ModelError(
            f"config.json: multi_query_attention=True and n_kv_heads={num_kv_heads} exclude each other: "
            f"multi-query attention has 1 key/value head; correct one of them"
        )
    head_dim = reader.head_dim(d_model, num_heads, num_kv_heads)
    reader.rotary_dim(head_dim)
    include_bias = reader.flag("include_bias")
    eos_id = reader.integer("eos_token_id", 126081, least=0)
    return ModelSpec(
        family="llada",
        vocab_size=reader.integer("embedding_size", reader.integer("vocab_size")),
        d_model=d_model,
        num_layers=reader.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_ff=reader.integer("mlp_hidden_size", int(reader.positive("mlp_ratio", 4) * d_model)),
        rope_theta=reader.rope_theta(10000.0),
        norm_eps=reader.positive("rms_norm_eps", 1e-5),
        max_length=reader.integer("max_sequence_length", 4096),
        mask_id=reader.integer("mask_token_id", 126336, least=0),
        eos_id=eos_id,
        pad_id=reader.integer("pad_token_id", eos_id, least=0),
        qkv_bias=include_bias or reader.flag("include_qkv_bias"),
        linear_bias=include_bias,
        norm_bias=reader.flag("bias_for_layer_norm", include_bias),
        tie_embeddings=reader.flag("weight_tying"),
        rope_fp32=reader.flag("rope_full_precision", True),
        block_size=None if config.get("block_size") is None else reader.integer("block_size"),
        turn_end="<|eot_id|>",
    )


def config_from_spec(spec: ModelSpec, dtype: str = "float32") -> dict[str, object]:
    """Build a `config.json` in LLaDA's own format that `spec_from_config` reads back to the same spec."""
    blocks = {} if spec.block_size is None else {"block_size": spec.block_size}
    return {
        **blocks,
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": spec.norm_bias,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": spec.d_model,
        "embedding_size": spec.vocab_size,
        "eos_token_id": spec.eos_id,
        "include_bias": spec.linear_bias,
        "include_qkv_bias": spec.qkv_bias,
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": spec.mask_id,
        "max_sequence_length": spec.max_length,
        "mlp_hidden_size": spec.d_ff,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": spec.num_heads,
        "n_kv_heads": spec.num_kv_heads,
        "n_layers": spec.num_layers,
        "pad_token_id": spec.pad_id,
        "rms_norm_eps": spec.norm_eps,
        "rope": True,
        "rope_full_precision": spec.rope_fp32,
        "rope_theta": spec.rope_theta,
        "scale_logits": False,
        "torch_dtype": dtype,
        "use_cache": False,
        "vocab_size": spec.vocab_size,
        "weight_tying": spec.tie_embeddings,
    }
