"""SGLang's names of decoding algorithms, and the keys of their YAML files, as decoders and knobs.

Source: sglang 0.5.23, `srt/dllm/algorithm`; the defaults are those of its files.
"""

from __future__ import annotations

from collections.abc import Mapping

from unmask import decoders
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import Source

BLOCK_SIZE, FIRST_BLOCK = "block_size", "initial_block_length"
KNOWN: dict[str, tuple[str, Mapping[str, object]]] = {
    "LowConfidence": ("threshold", {"threshold": 0.95}),
    "JointThreshold": (
        "joint_threshold",
        {"threshold": 0.5, "edit_threshold": 0.0, "max_post_edit_steps": 16, "penalty_lambda": 0.0},
    ),
}
"""Algorithm -> decoder, and the keys that its file may have with SGLang's defaults."""
REFUSED = {
    "JointThresholdInDel": "no decoder here inserts and deletes as it does; use JointThreshold",
    "Gemma4Renoise": "DiffusionGemma has no mask token, and no decoder here renoises",
}


def from_sglang(algorithm: str, config: Mapping[str, object] | None) -> Source:
    """Return the decoder and knobs of `--dllm-algorithm` and its file's content, as defaults.

    A decoder of ours may be named in SGLang's way too: `CadLLM` is `cadllm`, `EBSampler` is `eb_sampler`;
    its file then has its knobs. Raises ConfigError for an unknown name or key.
    """
    if algorithm in REFUSED:
        raise ConfigError(f"--dllm-algorithm {algorithm}: {REFUSED[algorithm]}")
    if algorithm in KNOWN:
        decoder, defaults = KNOWN[algorithm]
        allowed = set(defaults)
    else:
        plain = {name.replace("_", ""): name for name in decoders.names()}
        name = plain.get(algorithm.replace("_", "").lower())
        if name is None:
            raise unknown_name("--dllm-algorithm", algorithm, [*KNOWN, "CadLLM", *decoders.names()])
        decoder, defaults = name, {}
        allowed = decoders.knob_names(decoder) - {BLOCK_SIZE}
    knobs = dict(defaults)
    for key, value in (config or {}).items():
        if key == BLOCK_SIZE and "block_length" in decoders.knob_names(decoder):
            knobs["block_length"] = value
        elif key in allowed:
            knobs[str(key)] = value
        elif key == BLOCK_SIZE and FIRST_BLOCK in allowed:
            raise ConfigError(
                f"{BLOCK_SIZE}={value} of --dllm-algorithm {algorithm}: it sizes its blocks itself; "
                f"say {FIRST_BLOCK}={value} for the first, and min_block and max_block for the others"
            )
        else:
            raise unknown_name(f"key of --dllm-algorithm {algorithm}:", str(key), allowed)
    return Source({"decoder": decoder, **knobs}, spelling="--dllm-algorithm {key}", is_default=True)
