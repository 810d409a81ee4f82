"""Fast-dLLM v2 1.5B and 7B: Qwen2.5's network, block-causal, with shifted logits.

Source: arXiv:2509.26328 and the released configuration. Traps: the mask id is in no file; row i-1
predicts position i, so the first token of a block comes from the last row of the block before.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.models.families import dream
from unmask.models.hf_config import OFF, SILU, Allowed, Config, ConfigReader, HubDefaults, hub_spec
from unmask.models.spec import ModelSpec

ARCHITECTURES = ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_QwenModel")
MODEL_TYPES = ("Fast_dLLM_Qwen",)
MASK = "|<MASK>|"
NAMES = dream.NAMES

REQUIRED: Allowed = {
    "expert_capacity": OFF,
    "hidden_act": SILU,
}


DEFAULTS = HubDefaults(max_length=32768, mask_id=151665, eos_id=151645)


def spec_from_config(config: Config) -> ModelSpec:
    """Build the spec of a Fast-dLLM v2 `config.json`. Raises ModelError for missing or unsupported keys."""
    reader = ConfigReader(config, "Fast-dLLM v2")
    reader.require(REQUIRED)
    return replace(
        hub_spec(reader, "fast_dllm_v2", DEFAULTS),
        qkv_bias=True,
        shift_logits=True,
        block_size=reader.integer("bd_size", 32),
        turn_end="<|im_end|>",
    )
