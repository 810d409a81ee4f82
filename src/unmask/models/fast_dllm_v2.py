"""Fast-dLLM v2 1.5B and 7B: Qwen2.5's network, block-causal, with shifted logits.

Source: arXiv:2509.26328 and the released configuration. Traps: the mask id stands in no file; row i-1
predicts position i, so the first token of a block comes from the last row of the block before.
"""

from __future__ import annotations

from typing import Any

from unmask.models import dream
from unmask.models._config import Fields
from unmask.models.spec import ModelSpec

ARCHITECTURES = ("Fast_dLLM_QwenForCausalLM",)
MODEL_TYPES = ("Fast_dLLM_Qwen",)
MASK = "|<MASK>|"
NAMES = dream.NAMES

REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
}


def spec_from_config(config: dict[str, Any]) -> ModelSpec:
    """The spec of a Fast-dLLM v2 `config.json`. Raises ModelError for missing or unsupported keys."""
    get = Fields(config, "Fast-dLLM v2")
    get.require(REQUIRED)
    get.require_full_attention()
    d_model, num_heads = get.int("hidden_size"), get.int("num_attention_heads")
    num_kv_heads = get.int("num_key_value_heads", num_heads)
    eos_id = get.int("eos_token_id", 151645, least=0)
    return ModelSpec(
        family="fast_dllm_v2",
        vocab_size=get.int("vocab_size"),
        d_model=d_model,
        num_layers=get.int("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=get.head_dim(d_model, num_heads, num_kv_heads),
        d_ff=get.int("intermediate_size"),
        rope_theta=get.rope_theta(10000.0),
        norm_eps=get.float("rms_norm_eps", 1e-6),
        max_length=get.int("max_position_embeddings", 32768),
        mask_id=get.int("mask_token_id", 151665, least=0),
        eos_id=eos_id,
        pad_id=get.int("pad_token_id", eos_id, least=0),
        qkv_bias=True,
        tie_embeddings=bool(config.get("tie_word_embeddings")),
        shift_logits=True,
        block_size=get.int("bd_size", 32),
        turn_end="<|im_end|>",
    )
