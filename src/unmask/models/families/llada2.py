"""LLaDA2.0 and 2.1, mini and flash: block-causal, sigmoid router in groups, half-rotated heads.

Source: arXiv:2512.15745 and the released configuration. Traps: the config omits what is on by default or
known to the sampler only: q/k norm, the mask id, the end id (the pad id) and the block size (32, or the
key `block_size` if present); query, key and value are one tensor; RoPE rotates the first `rotary_dim`
dimensions, half of the head by default; the expert bias enters the choice but not the weights, and is
rounded to the model's dtype as the released code does on loading: in bfloat16 that decides near-ties of the
router. The weight of a token's only expert is not normalized. LLaDA2.2 has tokens that delete and insert;
its network and sampler are not implemented, so it is refused.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.errors import ModelError
from unmask.models.folder_files import shortened
from unmask.models.hf_config import OFF, SILU, Allowed, Config, ConfigReader, HubDefaults, hub_spec
from unmask.models.spec import ExpertSpec, ModelSpec

ARCHITECTURES = ("LLaDA2MoeModelLM", "LLaDA2MoeModel")
MODEL_TYPES = ("llada2_moe", "llada2_moe_veomni")
MASK = "<|mask|>"

_ATTN, _OURS = "model.layers.{i}.attention", "layers.{i}.attn"
_MLP, _FFN = "model.layers.{i}.mlp", "layers.{i}.ffn"
FORMS = {
    "stacked": (  # as dFactory writes them for training
        (f"{_MLP}.experts.gate_proj", f"{_FFN}.experts.gate.{{p}}"),
        (f"{_MLP}.experts.up_proj", f"{_FFN}.experts.up.{{p}}"),
        (f"{_MLP}.experts.down_proj", f"{_FFN}.experts.down.{{p}}"),
    )
}
NAMES = (
    ("model.word_embeddings.{p}", "embed.{p}"),
    ("model.norm.{p}", "norm.{p}"),
    ("lm_head.{p}", "lm_head.{p}"),
    ("model.layers.{i}.input_layernorm.{p}", "layers.{i}.attn_norm.{p}"),
    ("model.layers.{i}.post_attention_layernorm.{p}", "layers.{i}.ffn_norm.{p}"),
    (
        f"{_ATTN}.query_key_value.{{p}}",
        (f"{_OURS}.q.{{p}}", f"{_OURS}.k.{{p}}", f"{_OURS}.v.{{p}}"),
    ),
    (f"{_ATTN}.query_layernorm.{{p}}", f"{_OURS}.q_norm.{{p}}"),
    (f"{_ATTN}.key_layernorm.{{p}}", f"{_OURS}.k_norm.{{p}}"),
    (f"{_ATTN}.dense.{{p}}", f"{_OURS}.o.{{p}}"),
    (f"{_MLP}.gate_proj.{{p}}", f"{_FFN}.gate.{{p}}"),
    (f"{_MLP}.up_proj.{{p}}", f"{_FFN}.up.{{p}}"),
    (f"{_MLP}.down_proj.{{p}}", f"{_FFN}.down.{{p}}"),
    (f"{_MLP}.gate.weight", f"{_FFN}.router.weight"),
    (f"{_MLP}.gate.expert_bias", f"{_FFN}.router.bias"),
    (f"{_MLP}.experts.{{e}}.gate_proj.{{p}}", f"{_FFN}.experts.gate.{{p}}"),
    (f"{_MLP}.experts.{{e}}.up_proj.{{p}}", f"{_FFN}.experts.up.{{p}}"),
    (f"{_MLP}.experts.{{e}}.down_proj.{{p}}", f"{_FFN}.experts.down.{{p}}"),
    (f"{_MLP}.shared_experts.gate_proj.{{p}}", f"{_FFN}.shared.gate.{{p}}"),
    (f"{_MLP}.shared_experts.up_proj.{{p}}", f"{_FFN}.shared.up.{{p}}"),
    (f"{_MLP}.shared_experts.down_proj.{{p}}", f"{_FFN}.shared.down.{{p}}"),
    *FORMS["stacked"],
)

REQUIRED: Allowed = {
    "hidden_act": SILU,
    "norm_head": (False, None),
    "norm_softmax": (False, None),
    "norm_topk_prob": (True,),
    "router_dtype": ("fp32", "float32", None),
    "score_function": ("sigmoid",),
    "use_bias": (False, None),
    "use_rmsnorm": (True, None),
    "using_split_qkv_in_self_attention": (False, None),
}


DEFAULTS = HubDefaults(max_length=32768, mask_id=156895, eos_id=156892, norm_eps=1e-5)


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of a LLaDA2 `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "LLaDA2", rotary_share=0.5)
    edits = [
        key for key in ("delete_token_id", "split_token_id") if config.get(key) not in (None, -1)
    ]
    if edits:
        raise ModelError(
            f"config.json: {edits[0]}={shortened(repr(config[edits[0]]))} makes this LLaDA2.2, whose "
            f"tokens insert and delete; it is not supported; supported: LLaDA2.0 and LLaDA2.1, "
            f"which have no such token"
        )
    _refuse_block_routing(config)
    reader.require(REQUIRED)
    pad_id = reader.integer("pad_token_id", DEFAULTS.eos_id, least=0)
    return replace(
        hub_spec(reader, "llada2", DEFAULTS),
        eos_id=pad_id,
        pad_id=pad_id,
        qk_norm=reader.flag("use_qk_norm", True),
        qkv_bias=reader.flag("use_qkv_bias"),
        experts=_experts(reader),
        block_size=reader.integer("block_size", 32),
        turn_end="<|role_end|>",
    )


def _refuse_block_routing(config: Config) -> None:
    """Raise ModelError for an `expert_capacity` that leaves out experts for a whole block of tokens."""
    capacity, num_experts = config.get("expert_capacity"), config.get("num_experts")
    has_all = isinstance(capacity, int) and isinstance(num_experts, int) and capacity >= num_experts
    if not (capacity in OFF or (has_all and config.get("n_group") == config.get("topk_group"))):
        raise ModelError(
            f"config.json: expert_capacity={shortened(repr(capacity))} asks for block routing, in which "
            f"the tokens of a block share their experts (LLaDA2.2); it is not supported; supported: "
            f"LLaDA2.0 and LLaDA2.1, without this key"
        )


def _experts(reader: ConfigReader) -> ExpertSpec:
    num_experts, num_groups = reader.integer("num_experts"), reader.integer("n_group")
    if num_experts % num_groups or (num_groups > 1 and num_experts < 2 * num_groups):
        raise ModelError(
            f"config.json: n_group={num_groups} cannot split num_experts={num_experts} evenly into groups "
            f"of at least 2"
        )
    num_chosen_groups = reader.integer("topk_group")
    if num_chosen_groups > num_groups:
        raise ModelError(
            f"config.json: topk_group={num_chosen_groups} must not exceed n_group={num_groups}"
        )
    num_chosen = reader.integer("num_experts_per_tok")
    if num_chosen > num_chosen_groups * (num_experts // num_groups):
        raise ModelError(
            f"config.json: num_experts_per_tok={num_chosen} is more than topk_group={num_chosen_groups} of "
            f"n_group={num_groups} groups hold of num_experts={num_experts}"
        )
    d_ff = reader.integer("moe_intermediate_size")
    return ExpertSpec(
        num_experts=num_experts,
        num_chosen=num_chosen,
        d_ff=d_ff,
        score="sigmoid",
        renormalize=num_chosen > 1,
        scale=reader.positive("routed_scaling_factor"),
        num_groups=num_groups,
        num_chosen_groups=num_chosen_groups,
        router_bias=reader.flag("moe_router_enable_expert_bias", True),
        in_fp32=True,
        d_shared=d_ff * reader.integer("num_shared_experts", 0, least=0),
        dense_layers=tuple(range(reader.integer("first_k_dense_replace", 0, least=0))),
    )
