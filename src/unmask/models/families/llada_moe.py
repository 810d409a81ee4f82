"""LLaDA-MoE 7B-A1B: bidirectional, 64 experts of which each token uses 8, q/k norm.

Source: arXiv:2509.24389 and the released configuration. Traps: `model_type` is dense LLaDA's, so the
architecture or the key `num_experts` decides; the weights of the chosen experts are never renormalized
(`norm_topk_prob` and `routed_scaling_factor` are not read); an expert bias, where enabled, also
enters the weights; the shared expert, where there is one, is a sibling of `mlp`.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.errors import ModelError
from unmask.models.families import dream
from unmask.models.folder_files import shortened
from unmask.models.hf_config import OFF, SILU, Allowed, Config, ConfigReader, HubDefaults, hub_spec
from unmask.models.spec import ExpertSpec, ModelSpec

ARCHITECTURES = ("LLaDAMoEModelLM", "LLaDAMoEModel")
MODEL_TYPES = ("lladamoe", "llada_moe")
MASK = "<|mask|>"

_MLP, _FFN = "model.layers.{i}.mlp", "layers.{i}.ffn"
_SHARED = "model.layers.{i}.shared_expert"
FORMS = {
    "fused": (  # the repositories called -fused
        (f"{_MLP}.w1", (f"{_FFN}.experts.gate.{{p}}", f"{_FFN}.experts.up.{{p}}")),
        (f"{_MLP}.w2", f"{_FFN}.experts.down.{{p}}"),
    )
}
NAMES = (
    *dream.NAMES,
    ("model.layers.{i}.self_attn.q_norm.{p}", "layers.{i}.attn.q_norm.{p}"),
    ("model.layers.{i}.self_attn.k_norm.{p}", "layers.{i}.attn.k_norm.{p}"),
    (f"{_MLP}.gate.weight", f"{_FFN}.router.weight"),
    (f"{_MLP}.expert_bias", f"{_FFN}.router.bias"),
    (f"{_MLP}.experts.{{e}}.gate_proj.{{p}}", f"{_FFN}.experts.gate.{{p}}"),
    (f"{_MLP}.experts.{{e}}.up_proj.{{p}}", f"{_FFN}.experts.up.{{p}}"),
    (f"{_MLP}.experts.{{e}}.down_proj.{{p}}", f"{_FFN}.experts.down.{{p}}"),
    (f"{_SHARED}.gate_proj.{{p}}", f"{_FFN}.shared.gate.{{p}}"),
    (f"{_SHARED}.up_proj.{{p}}", f"{_FFN}.shared.up.{{p}}"),
    (f"{_SHARED}.down_proj.{{p}}", f"{_FFN}.shared.down.{{p}}"),
    *FORMS["fused"],
)

REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "attention_bias": (False, None),
    "block_size": (None,),
    "clip_qkv": (None,),
    "hidden_act": SILU,
    "moe_router_score_function": ("softmax", None),
    "router_num_group": (None, 1, -2),  # -2 stands for none in the released class
    "router_topk_group": (None, 1, -2),
}


DEFAULTS = HubDefaults(max_length=4096, mask_id=156895, eos_id=156892, norm_eps=1e-5)


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of a LLaDA-MoE `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "LLaDA-MoE")
    reader.require(REQUIRED)
    experts = _experts(config, reader)
    d_ff = reader.integer("dense_intermediate_size", None if experts.dense_layers else experts.d_ff)
    return replace(
        hub_spec(reader, "llada_moe", DEFAULTS, d_ff),
        qk_norm="qk_layernorm" not in config or reader.flag("qk_layernorm"),
        experts=experts,
        turn_end="<|role_end|>",
    )


def _experts(config: Config, reader: ConfigReader) -> ExpertSpec:
    num_layers = reader.integer("num_hidden_layers")
    kinds = config.get("moe_layer_freq")
    if kinds is None or kinds == 1:
        kinds = [1] * num_layers
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or any(kind not in (0, 1) for kind in kinds)
    ):
        raise ModelError(
            f"config.json: moe_layer_freq={shortened(repr(kinds))} must have a 0 (dense) or 1 (experts) "
            f"for each of the {num_layers} layers"
        )
    dense = tuple(layer for layer, kind in enumerate(kinds) if not kind)
    shared = config.get("shared_expert_intermediate_size")
    if shared and dense:
        raise ModelError(
            f"config.json: shared_expert_intermediate_size={shortened(repr(shared))} is not supported for "
            f"LLaDA-MoE with dense layers; supported: None"
        )
    has_bias = reader.flag("moe_router_enable_expert_bias")
    return ExpertSpec(
        num_experts=reader.integer("num_experts"),
        num_chosen=reader.at_most("num_experts_per_tok", "num_experts"),
        d_ff=reader.integer("expert_intermediate_size"),
        score="softmax",
        renormalize=False,
        router_bias=has_bias,
        is_bias_weighed=has_bias,
        d_shared=reader.integer("shared_expert_intermediate_size", 0, least=0),
        dense_layers=dense,
    )
