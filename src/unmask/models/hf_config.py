"""Typed access to a checkpoint's `config.json`."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any

from unmask.errors import ModelError
from unmask.models.spec import ModelSpec

PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""What a mapping about RoPE may say."""


class Fields:
    """Reads one family's config; every problem is a ModelError that names the key."""

    def __init__(
        self, config: Mapping[str, Any], family: str, rotary_share: builtins.float | None = None
    ) -> None:
        """`rotary_share`: how much of a head turns where nothing is said; None: always all of it."""
        self.config, self.family, self.rotary_share = config, family, rotary_share

    def require(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse values that would change the network in an unsupported way (a missing key is fine)."""
        for key, values in allowed.items():
            if key in self.config and self.config[key] not in values:
                raise ModelError(
                    f"config.json: {key}={self.config[key]!r} is not supported for {self.family}; "
                    f"supported: {' or '.join(repr(value) for value in values)}"
                )

    def _number(self, key: str, default: builtins.float | None) -> Any:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"config.json: {self.family} needs the key {key!r}")
            return default
        is_number = isinstance(value, (int, builtins.float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ModelError(f"config.json: {key}={value!r} must be a number")
        return value

    def int(
        self, key: str, default: builtins.int | None = None, least: builtins.int = 1
    ) -> builtins.int:
        """An integer of at least `least` (sizes: 1, ids: 0)."""
        value = self._number(key, default)
        if builtins.int(value) != value or value < least:
            raise ModelError(
                f"config.json: {key}={value!r} must be a whole number, at least {least}"
            )
        return builtins.int(value)

    def float(self, key: str, default: builtins.float | None = None) -> builtins.float:
        """A positive number."""
        value = self._number(key, default)
        if not value > 0:
            raise ModelError(f"config.json: {key}={value!r} must be greater than 0")
        return builtins.float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; `default` where the key is missing or null."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"config.json: {key}={value!r} must be true or false")
        return value

    def _nested(self) -> dict[str, Mapping[str, Any]]:
        """What newer files say of RoPE in a mapping of its own, by key; it must be the plain one."""
        found = {}
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
            found[key] = value
        return found

    def _said(self, key: str) -> dict[str, builtins.float]:
        """Everything that is said of a RoPE key, at the top level or nested, by place."""
        places = {"": self.config, **{f"{name}.": item for name, item in self._nested().items()}}
        return {
            f"{place}{key}": Fields(item, self.family).float(key)
            for place, item in places.items()
            if item.get(key) is not None
        }

    def rope_theta(self, default: builtins.float) -> builtins.float:
        """`rope_theta`, at the top level or (newer files) in `rope_parameters`; all must agree."""
        found = self._said("rope_theta")
        if len(set(found.values())) > 1:
            said = ", ".join(f"{key}={value}" for key, value in found.items())
            raise ModelError(f"config.json: {said} contradict; they must agree")
        return next(iter(found.values()), default)

    def at_most(self, key: str, limit: str) -> builtins.int:
        """An integer from 1 to the value of another key."""
        value, most = self.int(key), self.int(limit)
        if value > most:
            raise ModelError(f"config.json: {key}={value} must not exceed {limit}={most}")
        return value

    def rotary_dim(self, head_dim: builtins.int) -> builtins.int:
        """How many dimensions of a head turn: by `rotary_dim`, `partial_rotary_factor` (any place), or all.

        Raises ModelError for an odd number, one beyond the head, a part of it in a family where all turn,
        or keys that contradict each other.
        """
        found = {
            f"{key}={factor}": builtins.int(head_dim * factor)
            for key, factor in self._said("partial_rotary_factor").items()
        }
        if self.config.get("rotary_dim") is not None:
            found[f"rotary_dim={self.int('rotary_dim')}"] = self.int("rotary_dim")
        said = ", ".join(f"{key} says {value}" for key, value in found.items())
        if len(set(found.values())) > 1:
            problem = "they must agree"
        elif self.rotary_share is None and set(found.values()) - {head_dim}:
            problem = f"in {self.family} all of them turn"
        else:
            silent = builtins.int(head_dim * (self.rotary_share or 1))
            turned = next(iter(found.values()), silent)
            if turned % 2 == 0 and 0 < turned <= head_dim:
                return turned
            said = said or f"{turned} turn where nothing is said"
            problem = f"must be even, 2 to {head_dim}"
        raise ModelError(f"config.json: of {head_dim} dimensions of a head, {said}; {problem}")

    def require_full_attention(self) -> None:
        """Refuse `layer_types` other than full attention."""
        kinds = self.config.get("layer_types")
        are_full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        if kinds is not None and not are_full:
            raise ModelError(
                f"config.json: layer_types={kinds!r} is not supported for {self.family}; supported: "
                f"'full_attention' for every layer"
            )

    def head_dim(
        self, d_model: builtins.int, num_heads: builtins.int, num_kv_heads: builtins.int
    ) -> builtins.int:
        """Width of one head, from `head_dim` or the model's width."""
        if num_heads == 0 or num_kv_heads == 0 or num_heads % num_kv_heads:
            raise ModelError(
                f"config.json: {num_heads} heads cannot share {num_kv_heads} key/value heads; "
                f"the first must be a multiple of the second"
            )
        explicit = self.config.get("head_dim")
        if explicit is None and d_model % num_heads:
            raise ModelError(f"config.json: width {d_model} is not a multiple of {num_heads} heads")
        return self.int("head_dim", d_model // num_heads)


def hub_spec(
    get: Fields,
    *,
    family: str,
    eos_id: int,
    mask_id: int,
    max_length: int,
    norm_eps: float = 1e-6,
    rope_theta: float = 10000.0,
    head_width: int | None = None,
    **own: Any,
) -> ModelSpec:
    """The spec of a config that spells its sizes as transformers' Llama and Qwen do.

    Ids, `max_length`, `norm_eps` and `rope_theta` are what holds where the config is silent, `head_width`
    what a head is wide then (None: the model's width, split). `own` are the family's other fields; they
    win. Raises ModelError.
    """
    get.require_full_attention()
    d_model, num_heads = get.int("hidden_size"), get.int("num_attention_heads")
    num_kv_heads = get.int("num_key_value_heads", num_heads)
    width = d_model if head_width is None else head_width * num_heads
    end = get.int("eos_token_id", eos_id, least=0)
    head_dim = get.head_dim(width, num_heads, num_kv_heads)
    turned = get.rotary_dim(head_dim)
    values: dict[str, Any] = {
        "vocab_size": get.int("vocab_size"),
        "d_model": d_model,
        "num_layers": get.int("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "rotary_dim": None if turned == head_dim else turned,
        "rope_theta": get.rope_theta(rope_theta),
        "norm_eps": get.float("rms_norm_eps", norm_eps),
        "max_length": get.int("max_position_embeddings", max_length),
        "mask_id": get.int("mask_token_id", mask_id, least=0),
        "eos_id": end,
        "pad_id": get.int("pad_token_id", end, least=0),
        "tie_embeddings": get.flag("tie_word_embeddings"),
    }
    if "d_ff" not in own:
        values["d_ff"] = get.int("intermediate_size")
    return ModelSpec(family=family, **(values | own))
