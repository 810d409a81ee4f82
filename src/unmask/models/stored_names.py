"""Names of stored tensors: prefixes of wrappers, tensors that change nothing, likely causes of misfits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from unmask.models.folder_files import listing
from unmask.models.safetensors_files import TensorEntry, is_zero

_BUFFERS = re.compile(
    r"(?:^|\.)(?:"
    r"inv_freq|original_inv_freq|freqs_cis|"
    r"_?(?:cos|sin)(?:_cache|_cached)?|_?cos_sin_cache|rope_pos_(?:cos|sin)|"
    r"position_ids|token_type_ids|masked_bias|"
    r"(?:causal|alibi)_attention_bias"
    r")$"
)
_MASKS = re.compile(
    r"(?:^|\.)(?:(?:causal|attn|attention)_(?:mask|bias)|(?:self_)?(?:attn|attention)\.bias)$"
)
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_fpw_module|_forward_module"
    r"|_checkpoint_wrapped_module|base_layer)\."
)
MAX_BIAS_BYTES = 1 << 26
"""Maximum size of a bias that is read to find whether it is 0."""
_OUTER = ("base_model.", "model.")
_INNER = ("", "model.", "model.transformer.")
_CAUSES = (
    (r"lora_|modules_to_save", "a LoRA adapter: merge it into its base model first"),
    (
        r"\.(?:qweight|qzeros|g_idx|scales|SCB|absmax|quant_map|weight_scale(?:_inv)?|input_scale"
        r"|weight_packed|quant_state)\b",
        "quantized weights (GPTQ, AWQ, bitsandbytes or fp8): give the checkpoint before quantization",
    ),
    (
        r"(?:^|\.)(?:vision|visual|audio|mm_projector|multi_modal|image)",
        "a multimodal model, of which only text models are supported",
    ),
    (r"^(?:optimizer|exp_avg|ema)", "a training state: give the exported model"),
)


def changes_nothing(tensor: TensorEntry) -> bool:
    """Return True for a tensor that is no weight: a buffer that is computed, or a bias of zeros.

    Buffers are tables of RoPE, positions, and masks of pairs of positions, which are square.
    """
    if _BUFFERS.search(tensor.name):
        return True
    shape = tensor.shape
    if len(shape) >= 2 and shape[-1] == shape[-2] and _MASKS.search(tensor.name):
        return True
    is_bias = re.search(r"[._]bias$", tensor.name) is not None
    return is_bias and tensor.size_bytes <= MAX_BIAS_BYTES and is_zero(tensor)


def family_name(stored: str, known: Collection[str]) -> str | None:
    """Return the family's name of a stored tensor; None if it has none.

    The segments of wrappers are left out, then prefixes of a model that is another one's attribute; those
    that an inner class does not have are added.
    """
    if stored in known:
        return stored
    name = _WRAPPERS.sub("", stored)
    while True:
        for prefix in _INNER:
            if prefix + name in known:
                return prefix + name
        outer = next((prefix for prefix in _OUTER if name.startswith(prefix)), None)
        if outer is None:
            return None
        name = name.removeprefix(outer)


def likely_cause(
    unmapped: Sequence[str], missing: Sequence[str], head: str, num_layers: int
) -> str:
    """Return a sentence on what these names show; empty if they show nothing."""
    for pattern, cause in _CAUSES:
        if any(re.search(pattern, name) for name in unmapped):
            return f"; this looks like {cause}"
    if unmapped and not missing and all(name.endswith("bias") for name in unmapped):
        return "; the config says that there are no such biases: give the config of this model"
    if list(missing) == [head] and not unmapped:
        return (
            "; this is the whole inner model without its head, or the head is tied to the embedding: in "
            "the second case, set tie_word_embeddings (LLaDA: weight_tying) to true in config.json"
        )
    beyond = {number for name in unmapped if (number := _layer(name)) >= num_layers}
    if beyond and not missing:
        return f"; the file has layer {max(beyond)}, the config only layers 0 to {num_layers - 1}"
    absent = sorted({_layer(name) for name in missing} - {-1})
    if absent and not unmapped and absent[-1] == num_layers - 1:
        return (
            f"; the file lacks tensors of layers up to {absent[-1]}, the last: download it again, or "
            f"correct the number of layers in config.json"
        )
    if unmapped and missing:
        return "; config.json and the weights seem to be those of different models or families"
    return ""


def _layer(name: str) -> int:
    match = re.search(r"\.(?:layers|blocks|h)\.(\d+)\.", f".{name}")
    return -1 if match is None else int(match[1])


def problems_text(problems: Mapping[str, Sequence[str]]) -> str:
    """Return the kinds of problems with the number and the first of their names."""
    parts = []
    for kind, names in problems.items():
        if names:
            counted = "" if len(names) == 1 else f"{len(names)} tensors, "
            parts.append(f"{kind}: {counted}{listing(sorted(names))}")
    return "; ".join(parts)
