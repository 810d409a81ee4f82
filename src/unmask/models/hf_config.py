"""Checked access to a checkpoint's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unmask.errors import ModelError
from unmask.models.folder_files import shortened
from unmask.models.spec import ModelSpec

PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""Keys of a nested mapping with RoPE parameters that are read."""
UNIT_ROPE = {
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "truncate",
}
"""Further keys, which change nothing where `factor` and `attention_factor` are 1 or missing."""
UNIT_KINDS = {"default", "linear", "dynamic", "ntk", "yarn", "llama3"}
"""Kinds of RoPE that equal the plain one where their factor is 1."""
MAX_COUNT, MAX_SIZE, MAX_LENGTH = 512, 1 << 24, (1 << 31) - 1
MAX_VALUES: Mapping[str, float] = {
    "decoder_sparse_step": MAX_COUNT,
    "first_k_dense_replace": MAX_COUNT,
    "head_dim": 4096,
    "max_position_embeddings": MAX_LENGTH,
    "max_sequence_length": MAX_LENGTH,
    "mlp_ratio": 1024,
    "n_group": 1024,
    "n_heads": 4096,
    "n_kv_heads": 4096,
    "n_layers": MAX_COUNT,
    "num_attention_heads": 4096,
    "num_experts": 1024,
    "num_experts_per_tok": 1024,
    "num_hidden_layers": MAX_COUNT,
    "num_key_value_heads": 4096,
    "num_shared_experts": MAX_COUNT,
    "partial_rotary_factor": 1024,
    "rms_norm_eps": 1,
    "topk_group": 1024,
}
"""Maximum values of keys, several times those of any release; of others, whole numbers (sizes and ids) are
at most `MAX_SIZE`, numbers at most `MAX_NUMBER`. Loops and tensors of any size are bounded by them."""
MAX_NUMBER = 1e12
ONE: tuple[object, ...] = (1, None)
OFF: tuple[object, ...] = (False, None, 0, 0.0)
Config = Mapping[str, object]
"""A parsed `config.json`; values are checked as they are read."""
Allowed = Mapping[str, tuple[object, ...]]
"""The supported values of some keys."""
SILU: tuple[object, ...] = ("silu", "swish")
NEUTRAL: Allowed = {
    "alibi": OFF,
    "apply_residual_connection_post_layernorm": OFF,
    "attention_chunk_size": (None,),
    "attn_logit_softcap": OFF,
    "attn_temperature_tuning": OFF,
    "attention_multiplier": (None,),
    "attn_logit_softcapping": OFF,
    "delete_token_id": (None, -1),  # as of LLaDA2.2 and DreamOn
    "embedding_multiplier": ONE,
    "expand_token_id": (None, -1),
    "final_logit_softcapping": OFF,
    "is_causal": OFF,
    "logit_softcap": OFF,
    "logits_soft_cap": OFF,
    "no_rope_layers": (None, []),
    "norm_after": OFF,
    "parallel_attn": OFF,
    "position_embedding_type": ("rope", "rotary", None),
    "logit_scale": ONE,
    "logits_scaling": ONE,
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": ONE,
    "rope_interleave": OFF,
    "rope_interleaved": OFF,
    "scale_depth": (None,),
    "scale_emb": ONE,
    "split_token_id": (None, -1),
    "use_rope": (True, None),
    "use_parallel_residual": OFF,
    "zero_centered_gamma": OFF,
}
"""Keys of any family whose other values change the logits in a way that no stored tensor shows."""


def architecture(config: Config) -> str | None:
    """Return the first of a config's `architectures`; None if there is none."""
    names = config.get("architectures")
    if not (isinstance(names, list) and names):
        return None
    return str(names[0]).removeprefix("FSDP")  # PyTorch's wrapper renames the class


def refuse_quantized(config: Config) -> None:
    """Raise ModelError for weights in a quantized format, with its `quant_method`."""
    for key in ("quantization_config", "compression_config", "quantization"):
        value = config.get(key)
        if not value:
            continue
        items = value if isinstance(value, Mapping) else {}
        loads = {name: items[name] for name in ("load_in_8bit", "load_in_4bit") if name in items}
        method = items.get("quant_method") or ("bitsandbytes" if loads else None)
        if method == "bitsandbytes" and not any(loads.values()):
            continue
        form = f"{key}={value!r}" if method is None else f"{key} with quant_method={method!r}"
        raise ModelError(
            f"config.json: {shortened(form, 200)}: quantized weights are not read; give the checkpoint "
            f"that it was made from (float32, bfloat16 or float16), and quantization='int8' to save memory"
        )


def _is_plain(rope: Mapping[str, object], context: object) -> bool:
    """Return True for RoPE parameters that are those of plain RoPE, whatever their kind is called.

    A factor of 1 scales nothing, unless `original_max_position_embeddings` implies another one.
    """
    given = {key: value for key, value in rope.items() if value is not None}
    kinds = {str(given[key]) for key in ("rope_type", "type") if key in given} or {"default"}
    implied = given.get("original_max_position_embeddings", context)
    return (
        kinds <= UNIT_KINDS
        and given.keys() <= PLAIN_ROPE | UNIT_ROPE
        and given.get("factor", 1 if kinds == {"default"} else None) == 1
        and given.get("attention_factor", 1) == 1
        and implied == context
    )


class ConfigReader:
    """Checked access to one family's config; every problem is a ModelError that names the key.

    `rotary_share` is the share of a head's dimensions that RoPE rotates by default; None: always all.
    """

    def __init__(self, config: Config, family: str, rotary_share: float | None = None) -> None:
        self.config, self.family, self.rotary_share = config, family, rotary_share

    def require(self, allowed: Allowed) -> None:
        """Raise ModelError for a value that is not allowed, also of `NEUTRAL`; keys may be missing."""
        for key, values in {**NEUTRAL, **allowed}.items():
            if key in self.config and self.config[key] not in values:
                raise self.unsupported(key, " or ".join(repr(value) for value in values))

    def unsupported(self, key: str, supported: str) -> ModelError:
        """Build the error for a key's value that changes the network in a way that is not implemented."""
        value = shortened(repr(self.config[key]), 200)
        return ModelError(
            f"config.json: {key}={value} is not supported for {self.family}; supported: {supported}"
        )

    def refuse_window(self) -> None:
        """Raise ModelError for a sliding window that narrows the attention of any layer.

        It is inert with the width null or at least the context, and where it begins behind the last layer
        (`max_window_layers`).
        """
        if self.config.get("use_sliding_window") in OFF:
            return
        width, first = self.config.get("sliding_window", 0), self.config.get("max_window_layers")
        layers = self.config.get("num_hidden_layers")
        context = self.config.get("max_position_embeddings")
        is_inert = (
            width is None
            or (isinstance(first, int) and isinstance(layers, int) and first >= layers)
            or (isinstance(width, int) and isinstance(context, int) and width >= context)
        )
        if not is_inert:
            raise self.unsupported(
                "use_sliding_window", f"False; here sliding_window={shortened(repr(width))}"
            )

    def _number(self, key: str, default: float | None, most: float) -> float:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"config.json: {self.family} needs the key {key!r}")
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"config.json: {key}={shortened(repr(value))} must be a number")
        most = MAX_VALUES.get(key, most)
        if not -most <= value <= most:  # NaN too
            raise ModelError(
                f"config.json: {key}={shortened(repr(value))} must be a number, and at most {most:,}; "
                f"download config.json again"
            )
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least` (sizes: 1, ids: 0)."""
        value = self._number(key, default, MAX_SIZE)
        if int(value) != value or value < least:
            raise ModelError(
                f"config.json: {key}={value!r} must be a whole number, at least {least}"
            )
        return int(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number greater than 0."""
        value = self._number(key, default, MAX_NUMBER)
        if not value > 0:
            raise ModelError(f"config.json: {key}={value!r} must be greater than 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean; `default` where the key is missing or null."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {key}={shortened(repr(value))} must be true or false")
        return value

    def _nested(self) -> dict[str, Config]:
        """Return the nested RoPE mappings of newer files by key. Raises ModelError for other RoPE kinds."""
        result: dict[str, Config] = {}
        for key in ("rope_parameters", "rope_scaling"):
            value = self.config.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ModelError(f"config.json: {key}={shortened(repr(value))} must be an object")
            if isinstance(value.get("full_attention"), Mapping):
                value = value["full_attention"]  # one for each kind of attention, in newer files
            if not _is_plain(value, self.config.get("max_position_embeddings")):
                raise self.unsupported(
                    key,
                    "rope_type 'default' with no more than rope_theta and partial_rotary_factor, or "
                    "another with factor 1, which equals it; RoPE is not scaled",
                )
            result[key] = value
        return result

    def _rope_values(self, key: str) -> dict[str, float]:
        """Return every value of a RoPE key, at the top level or nested, by its path."""
        places = {"": self.config, **{f"{name}.": item for name, item in self._nested().items()}}
        return {
            f"{place}{key}": ConfigReader(item, self.family).positive(key)
            for place, item in places.items()
            if item.get(key) is not None
        }

    def rope_theta(self, default: float) -> float:
        """Return `rope_theta` of the top level or, in newer files, of `rope_parameters`; all must agree."""
        values = self._rope_values("rope_theta")
        if len(set(values.values())) > 1:
            listing = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ModelError(f"config.json: {listing} differ; they must agree")
        return next(iter(values.values()), default)

    def at_most(self, key: str, limit: str) -> int:
        """Return a whole number from 1 to the value of another key."""
        value, most = self.integer(key), self.integer(limit)
        if value > most:
            raise ModelError(f"config.json: {key}={value} must not exceed {limit}={most}")
        return value

    def rotary_dim(self, head_dim: int) -> int:
        """Return the number of a head's dimensions that RoPE rotates.

        It is `rotary_dim`, or the share `partial_rotary_factor` (top level or nested) of the head, or the
        family's share. Raises ModelError for an odd number, one larger than the head, a part of the head in
        a family that rotates all of it, or keys that disagree.
        """
        values = {
            f"{key}={factor}": int(head_dim * factor)
            for key, factor in self._rope_values("partial_rotary_factor").items()
        }
        if self.config.get("rotary_dim") is not None:
            values[f"rotary_dim={self.integer('rotary_dim')}"] = self.integer("rotary_dim")
        listing = ", ".join(f"{key} means {value}" for key, value in values.items())
        if len(set(values.values())) > 1:
            problem = "they must agree"
        elif self.rotary_share is None and set(values.values()) - {head_dim}:
            problem = f"{self.family} rotates all of them"
        else:
            default = int(head_dim * (self.rotary_share or 1))
            rotated = next(iter(values.values()), default)
            if rotated % 2 == 0 and 0 < rotated <= head_dim:
                return rotated
            listing = listing or f"{rotated} are rotated by default"
            problem = f"must be even, 2 to {head_dim}"
        raise ModelError(f"config.json: of {head_dim} dimensions of a head, {listing}; {problem}")

    def require_full_attention(self) -> None:
        """Raise ModelError for `layer_types` other than full attention."""
        kinds = self.config.get("layer_types")
        are_full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        if kinds is not None and not are_full:
            raise self.unsupported("layer_types", "'full_attention' for every layer")

    def head_dim(self, d_model: int, num_heads: int, num_kv_heads: int) -> int:
        """Return the width of one head, from `head_dim` or the model's width."""
        if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
            raise ModelError(
                f"config.json: {num_heads} heads cannot share {num_kv_heads} key/value heads; "
                f"the first must be a multiple of the second"
            )
        explicit = self.config.get("head_dim")
        if explicit is None and d_model % num_heads:
            raise ModelError(f"config.json: width {d_model} is not a multiple of {num_heads} heads")
        return self.integer("head_dim", d_model // num_heads)


@dataclass(frozen=True)
class HubDefaults:
    """Values for keys that a config leaves out; `head_width` None: the model's width over the heads."""

    max_length: int
    mask_id: int
    eos_id: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    head_width: int | None = None


def hub_spec(
    reader: ConfigReader, family: str, default: HubDefaults, d_ff: int | None = None
) -> ModelSpec:
    """Build the spec of a config with the keys of transformers' Llama and Qwen.

    `d_ff` replaces the key `intermediate_size`. Raises ModelError.
    """
    reader.require_full_attention()
    reader.refuse_window()
    d_model, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    num_kv_heads = reader.integer("num_key_value_heads", num_heads)
    width = d_model if default.head_width is None else default.head_width * num_heads
    eos_id = reader.integer("eos_token_id", default.eos_id, least=0)
    head_dim = reader.head_dim(width, num_heads, num_kv_heads)
    rotary_dim = reader.rotary_dim(head_dim)
    return ModelSpec(
        family=family,
        vocab_size=reader.integer("vocab_size"),
        d_model=d_model,
        num_layers=reader.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_ff=reader.integer("intermediate_size") if d_ff is None else d_ff,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        rope_theta=reader.rope_theta(default.rope_theta),
        norm_eps=reader.positive("rms_norm_eps", default.norm_eps),
        max_length=reader.integer("max_position_embeddings", default.max_length),
        mask_id=reader.integer("mask_token_id", default.mask_id, least=0),
        eos_id=eos_id,
        pad_id=reader.integer("pad_token_id", eos_id, least=0),
        tie_embeddings=reader.flag("tie_word_embeddings"),
    )
