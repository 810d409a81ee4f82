"""Causal models adapted to diffusion: Qwen2, Qwen3 and Llama networks with open attention (Tiny-A2D).

Source: the released configurations of dllm's a2d checkpoints; the networks are Qwen2's (arXiv:2407.10671),
Qwen3's (arXiv:2505.09388) and Llama's (arXiv:2302.13971). Traps: the mask id is in no file of the released
ones, it is the tokenizer's; no key names the block size with which the block-diffusion ones were trained.
The keys `shift_logits` and `block_size` are written by our trainer.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.errors import ModelError
from unmask.models.families import sdar
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
from unmask.models.spec import ModelSpec

KINDS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
ARCHITECTURES = tuple(f"A2D{name}LMHeadModel" for name in KINDS.values())
MODEL_TYPES = tuple(f"a2d-{kind}" for kind in KINDS)
CAUSAL = {f"{name}ForCausalLM": kind for kind, name in KINDS.items()}
"""Causal classes with the kind of their network."""
MASK = "<|mask|>"
NAMES = sdar.NAMES

REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "hidden_act": SILU,
    "mlp_bias": (False, None),
}
DEFAULTS = {
    "qwen2": HubDefaults(max_length=32768, mask_id=151669, eos_id=151645),
    "qwen3": HubDefaults(max_length=32768, mask_id=151669, eos_id=151645, head_width=128),
    "llama": HubDefaults(max_length=2048, mask_id=128256, eos_id=128009),
}


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of an A2D `config.json`. Raises ModelError for missing or unsupported keys."""
    name = architecture(config) or ""
    kind = str(config.get("model_type", "")).removeprefix("a2d-")
    if name in ARCHITECTURES:
        kind = list(KINDS)[ARCHITECTURES.index(name)]
    if kind not in KINDS:
        raise ModelError(
            f"config.json: model_type={kind!r} must be one of {', '.join(MODEL_TYPES)}"
        )
    reader = ConfigReader(config, "A2D")
    has_bias = kind == "qwen2" or reader.flag("attention_bias")
    reader.require({**REQUIRED, **({} if kind == "qwen2" else {"attention_bias": (False, None)})})
    return replace(
        hub_spec(reader, "a2d", DEFAULTS[kind]),
        qkv_bias=has_bias,
        qk_norm=kind == "qwen3",
        shift_logits=reader.flag("shift_logits"),
        block_size=None if config.get("block_size") is None else reader.integer("block_size"),
        turn_end="<|eot_id|>" if kind == "llama" else "<|im_end|>",
    )


def adapted_config(config: Config) -> dict[str, object]:
    """Return the A2D config of a causal model's: its network, shifted logits, no blocks."""
    kind = CAUSAL[architecture(config) or ""]
    return {
        **{key: value for key, value in config.items() if key != "auto_map"},
        "architectures": [f"A2D{KINDS[kind]}LMHeadModel"],
        "model_type": f"a2d-{kind}",
        "shift_logits": True,
    }
