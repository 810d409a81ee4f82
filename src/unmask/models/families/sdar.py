"""SDAR 1.7B to 8B and 30B-A3B, TraDo: Qwen3's network (dense or with experts), block-causal.

Source: arXiv:2510.06303 and the released configuration; the experts are Qwen3-MoE's (arXiv:2505.09388).
Traps: a head's width is 128 whatever the model's; norms scale in float32; there is no pad id; the block
size is the config's (4, and 8 to 64 in variants). Assumed: the MoE checkpoint's own code rounds its
norms as the dense one does.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.errors import ModelError
from unmask.models.families import dream
from unmask.models.folder_files import shortened
from unmask.models.hf_config import (
    OFF,
    SILU,
    Allowed,
    Config,
    ConfigReader,
    HubDefaults,
    architecture,
    hub_spec,
)
from unmask.models.spec import ExpertSpec, ModelSpec

ARCHITECTURES = ("SDARForCausalLM", "SDARMoeForCausalLM", "SDARModel", "SDARMoeModel")
MOE = ("SDARMoeForCausalLM", "SDARMoeModel")
MODEL_TYPES = ("sdar", "sdar_moe")
MASK = "<|MASK|>"

_MLP, _FFN = "model.layers.{i}.mlp", "layers.{i}.ffn"
FORMS = {
    "fused": (  # as transformers 5 writes experts
        (
            f"{_MLP}.experts.gate_up_proj",
            (f"{_FFN}.experts.gate.{{p}}", f"{_FFN}.experts.up.{{p}}"),
        ),
        (f"{_MLP}.experts.down_proj", f"{_FFN}.experts.down.{{p}}"),
    )
}
NAMES = (
    *dream.NAMES,
    ("model.layers.{i}.self_attn.q_norm.{p}", "layers.{i}.attn.q_norm.{p}"),
    ("model.layers.{i}.self_attn.k_norm.{p}", "layers.{i}.attn.k_norm.{p}"),
    (f"{_MLP}.gate.{{p}}", f"{_FFN}.router.{{p}}"),
    (f"{_MLP}.experts.{{e}}.gate_proj.{{p}}", f"{_FFN}.experts.gate.{{p}}"),
    (f"{_MLP}.experts.{{e}}.up_proj.{{p}}", f"{_FFN}.experts.up.{{p}}"),
    (f"{_MLP}.experts.{{e}}.down_proj.{{p}}", f"{_FFN}.experts.down.{{p}}"),
    *FORMS["fused"],
)

REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "attention_bias": (False, None),
    "hidden_act": SILU,
}


DEFAULTS = HubDefaults(
    max_length=32768, mask_id=151669, eos_id=151643, rope_theta=1e6, head_width=128
)


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of an SDAR `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "SDAR")
    reader.require(REQUIRED)
    experts = _experts(config, reader)
    d_ff = reader.integer("intermediate_size", experts.d_ff if experts else None)
    return replace(
        hub_spec(reader, "sdar", DEFAULTS, d_ff),
        norm_fp32=True,
        qk_norm=True,
        experts=experts,
        block_size=reader.integer("block_size", 4),
        turn_end="<|im_end|>",
    )


def _experts(config: Config, reader: ConfigReader) -> ExpertSpec | None:
    if architecture(config) not in MOE and config.get("model_type") != "sdar_moe":
        if config.get("num_experts"):
            raise ModelError(
                f"config.json: num_experts={shortened(repr(config['num_experts']))} is not supported for "
                f"the dense SDARForCausalLM; supported: architectures ['SDARMoeForCausalLM']"
            )
        return None
    num_layers, every = (
        reader.integer("num_hidden_layers"),
        reader.integer("decoder_sparse_step", 1),
    )
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise ModelError(
            f"config.json: mlp_only_layers={shortened(repr(dense))} must be a list of layer numbers"
        )
    only_dense = set(dense)
    return ExpertSpec(
        num_experts=reader.integer("num_experts"),
        num_chosen=reader.at_most("num_experts_per_tok", "num_experts"),
        d_ff=reader.integer("moe_intermediate_size"),
        score="softmax",
        renormalize=reader.flag("norm_topk_prob", True),
        dense_layers=tuple(
            layer for layer in range(num_layers) if layer in only_dense or (layer + 1) % every
        ),
    )
