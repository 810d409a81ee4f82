"""Checked access to a checkpoint's `config.json`, and to the token ids that it leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import ModelError
from unmask.models.spec import ModelSpec

PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""Allowed keys of a nested mapping with RoPE parameters."""
Config = Mapping[str, object]
"""A parsed `config.json`; values are checked as they are read."""
Allowed = Mapping[str, tuple[object, ...]]
"""The supported values of some keys."""


def architecture(config: Config) -> str | None:
    """Return the first of a config's `architectures`; None if there is none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


class ConfigReader:
    """Checked access to one family's config; every problem is a ModelError that names the key.

    `rotary_share` is the share of a head's dimensions that RoPE rotates by default; None: always all.
    """

    def __init__(self, config: Config, family: str, rotary_share: float | None = None) -> None:
        self.config, self.family, self.rotary_share = config, family, rotary_share

    def require(self, allowed: Allowed) -> None:
        """Raise ModelError for a value that is not allowed; a missing key is accepted."""
        for key, values in allowed.items():
            if key in self.config and self.config[key] not in values:
                raise ModelError(
                    f"config.json: {key}={self.config[key]!r} is not supported for {self.family}; "
                    f"supported: {' or '.join(repr(value) for value in values)}"
                )

    def _number(self, key: str, default: float | None) -> float:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"config.json: {self.family} needs the key {key!r}")
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise ModelError(f"config.json: {key}={value!r} must be a number")
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least` (sizes: 1, ids: 0)."""
        value = self._number(key, default)
        if int(value) != value or value < least:
            raise ModelError(
                f"config.json: {key}={value!r} must be a whole number, at least {least}"
            )
        return int(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """Return a number greater than 0."""
        value = self._number(key, default)
        if not value > 0:
            raise ModelError(f"config.json: {key}={value!r} must be greater than 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean; `default` where the key is missing or null."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {key}={value!r} must be true or false")
        return value

    def _nested(self) -> dict[str, Config]:
        """Return the nested RoPE mappings of newer files by key. Raises ModelError for other RoPE kinds."""
        result: dict[str, Config] = {}
        for key in ("rope_parameters", "rope_scaling"):
            value = self.config.get(key)
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ModelError(f"config.json: {key}={value!r} must be an object")
            kind = value.get("rope_type", value.get("type", "default"))
            unknown = sorted(value.keys() - PLAIN_ROPE)
            if kind != "default" or unknown:
                raise ModelError(
                    f"config.json: {key}={dict(value)!r} is not supported for {self.family}; supported: "
                    f"rope_type 'default' with no more than rope_theta and partial_rotary_factor"
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
            raise ModelError(
                f"config.json: layer_types={kinds!r} is not supported for {self.family}; supported: "
                f"'full_attention' for every layer"
            )

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


def added_token_id(folder: Path, text: str) -> int | None:
    """Return the id of the added token with this text; None if no file of the folder has it.

    Reads `tokenizer_config.json`, then `tokenizer.json`. Raises ModelError for files that are not JSON.
    """
    for name in ("tokenizer_config.json", "tokenizer.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ModelError(f"{path}: not valid JSON ({error})") from None
        for id_, spelled in _added(content):
            if spelled == text:
                return id_
    return None


def _added(content: object) -> Iterator[tuple[int, str]]:
    if not isinstance(content, dict):
        return
    decoder, tokens = content.get("added_tokens_decoder"), content.get("added_tokens")
    if isinstance(decoder, dict):
        for key, item in decoder.items():
            if str(key).isdecimal() and isinstance(item, dict):
                yield int(key), str(item.get("content"))
    if isinstance(tokens, list):
        for item in tokens:
            if isinstance(item, dict) and isinstance(item.get("id"), int):
                yield item["id"], str(item.get("content"))
