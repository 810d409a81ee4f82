"""SGLang's names of decoding algorithms, and the keys of their YAML files, as decoders and knobs.

Source: sglang 0.5.23, `srt/dllm/algorithm`; the defaults are those of its files. All of them work on whole
blocks of masks, which begin at multiples of the block size, and cut the answer afterwards. HierarchyBlock
is that of its pull request for Fast-dLLM v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unmask import decoders
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import Source
from unmask.method import MethodSpec
from unmask.models.spec import ModelSpec

BLOCK_SIZE, BLOCK_LENGTH, FIRST_BLOCK = "block_size", "block_length", "initial_block_length"
WHOLE_BLOCKS = "whole_blocks"


@dataclass(frozen=True, slots=True)
class SGLangAlgorithm:
    """An algorithm: our decoder, the keys of its file with SGLang's defaults, and the knobs that it fixes.

    `names`: our names of keys that have another one. `neutral`: keys of other algorithms, with the value at
    which they ask for nothing. `required`: keys with one possible value.
    """

    decoder: str
    keys: Mapping[str, float]
    fixed: Mapping[str, object]
    names: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, float] = field(default_factory=dict)
    required: Mapping[str, int] = field(default_factory=dict)


NO_EDITS = {"edit_threshold": 1.0, "max_post_edit_steps": 0, "penalty_lambda": 0.0}
LOW_CONFIDENCE = SGLangAlgorithm(
    "threshold",
    {"threshold": 0.95},
    {"comparator": "gt", WHOLE_BLOCKS: True},
    neutral=NO_EDITS,
)
KNOWN: dict[str, SGLangAlgorithm] = {
    "LowConfidence": LOW_CONFIDENCE,
    "LowConfidenceFDFO": LOW_CONFIDENCE,
    "JointThreshold": SGLangAlgorithm(
        "joint_threshold",
        {"threshold": 0.5, "edit_threshold": 0.0, "max_post_edit_steps": 16, "penalty_lambda": 0.0},
        {WHOLE_BLOCKS: True},
    ),
    "HierarchyBlock": SGLangAlgorithm(
        "threshold",
        {"threshold": 0.9, "sub_block_size": 8},
        {"comparator": "gt", "first_alone": True, WHOLE_BLOCKS: True},
        names={"sub_block_size": BLOCK_LENGTH},
        neutral=NO_EDITS,
        required={"token_shift": 1},
    ),
}
REFUSED = {
    "JointThresholdInDel": "no decoder here inserts and deletes as it does; use JointThreshold",
    "Gemma4Renoise": "DiffusionGemma has no mask token, and no decoder here renoises",
}
RANGES: Mapping[str, tuple[float, float | None]] = {
    "threshold": (0, 1),
    "edit_threshold": (0, 1),
    "max_post_edit_steps": (0, None),
    "penalty_lambda": (0, None),
}
"""Range of a knob; SGLang takes any number, and one outside acts as the nearest one inside."""
UNREAD = ("vectorized_decoding", "capture_input_preparation")
"""Switches between implementations of one rule, which SGLang too decodes alike."""


def from_sglang(algorithm: str, config: Mapping[str, object] | None) -> Source:
    """Return the decoder and knobs of `--dllm-algorithm` and its file's content, as defaults.

    A decoder of ours may be named in SGLang's way too: `CadLLM` is `cadllm`, `EBSampler` is `eb_sampler`;
    its file then has its knobs. Raises ConfigError for an unknown name or key.
    """
    if algorithm in REFUSED:
        raise ConfigError(f"--dllm-algorithm {algorithm}: {REFUSED[algorithm]}")
    content = {str(key): value for key, value in (config or {}).items() if value is not None}
    for key in UNREAD:
        flag = content.pop(key, False)
        if not isinstance(flag, bool):
            raise ConfigError(
                f"{key}={flag!r} of --dllm-algorithm {algorithm} must be true or false"
            )
    if algorithm in KNOWN:
        values = _knobs(algorithm, KNOWN[algorithm], content)
    else:
        values = _own_knobs(algorithm, content)
    return Source(values, spelling="--dllm-algorithm {key}", is_default=True)


def _knobs(
    name: str, algorithm: SGLangAlgorithm, content: Mapping[str, object]
) -> dict[str, object]:
    """Return the decoder and knobs of one of SGLang's algorithms."""
    values: dict[str, object] = {**algorithm.keys, **algorithm.fixed}
    for key, value in content.items():
        within = _within(key, value)
        if key == BLOCK_SIZE:  # `for_model` compares it with the model's
            if BLOCK_LENGTH not in algorithm.names.values():
                values[BLOCK_LENGTH] = value
        elif key in algorithm.keys:
            values[key] = within
        elif key in algorithm.required:
            if value != algorithm.required[key]:
                raise ConfigError(
                    f"{key}={value!r} of --dllm-algorithm {name} must be {algorithm.required[key]}"
                )
        elif key not in algorithm.neutral or within != algorithm.neutral[key]:
            known = {*algorithm.keys, *algorithm.required, BLOCK_SIZE}
            raise unknown_name(f"key of --dllm-algorithm {name}:", key, known)
    renamed = {algorithm.names.get(key, key): value for key, value in values.items()}
    return {"decoder": algorithm.decoder, **renamed}


def for_model(
    method: MethodSpec, algorithm: str, config: Mapping[str, object] | None, spec: ModelSpec
) -> MethodSpec:
    """Return the method of an algorithm for a model; one without blocks has no whole blocks.

    Raises ConfigError for one of SGLang's algorithms that this model cannot run as SGLang does.
    """
    known, block_size = KNOWN.get(algorithm), (config or {}).get(BLOCK_SIZE)
    if known is None:
        return method
    if known.required and not (spec.shift_logits and spec.block_size is not None):
        raise ConfigError(
            f"--dllm-algorithm {algorithm} is for models with blocks and shifted logits, such as Fast-dLLM "
            f"v2, and this one is not; use LowConfidence"
        )
    if spec.block_size is None:
        values = {key: value for key, value in method.given.items() if key != WHOLE_BLOCKS}
        names = {"decoder": method.decoder_name, "cache": method.cache_name}
        return MethodSpec.parse(Source({**names, **values}, is_default=True))
    if block_size is not None and block_size != spec.block_size:
        raise ConfigError(
            f"{BLOCK_SIZE}={block_size!r} of --dllm-algorithm {algorithm} would change this model's "
            f"attention, which has blocks of {spec.block_size}; leave it out, or give the knob "
            f"{BLOCK_LENGTH}={block_size} to decode in parts of a block"
        )
    return method


def _within(key: str, value: object) -> object:
    """Return the number of a knob's range that acts as `value` does; other values unchanged."""
    if key not in RANGES or not isinstance(value, int | float) or isinstance(value, bool):
        return value
    least, most = RANGES[key]
    if value < least:
        return least
    return most if most is not None and value > most else value


def _own_knobs(algorithm: str, content: Mapping[str, object]) -> dict[str, object]:
    """Return a decoder of ours, named in SGLang's way, and its knobs."""
    plain = {name.replace("_", ""): name for name in decoders.names()}
    decoder = plain.get(algorithm.replace("_", "").lower())
    if decoder is None:
        raise unknown_name("--dllm-algorithm", algorithm, [*KNOWN, "CadLLM", *decoders.names()])
    allowed = decoders.knob_names(decoder) - {BLOCK_SIZE}
    values: dict[str, object] = {"decoder": decoder}
    for key, value in content.items():
        if key == BLOCK_SIZE and BLOCK_LENGTH in allowed:
            values[BLOCK_LENGTH] = value
        elif key in allowed:
            values[key] = value
        elif key == BLOCK_SIZE and FIRST_BLOCK in allowed:
            raise ConfigError(
                f"{BLOCK_SIZE}={value} of --dllm-algorithm {algorithm}: it sizes its blocks itself; "
                f"say {FIRST_BLOCK}={value} for the first, and min_block and max_block for the others"
            )
        else:
            raise unknown_name(f"key of --dllm-algorithm {algorithm}:", key, allowed)
    return values
