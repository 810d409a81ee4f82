"""Typed access to a checkpoint's `config.json`."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from typing import Any

from unmask.errors import ModelError
from unmask.models.spec import ModelSpec


class Fields:
    """Reads one family's config; every problem is a ModelError that names the key."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.config, self.family = config, family

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

    def rope_theta(self, default: builtins.float) -> builtins.float:
        """`rope_theta`, at the top level or (newer files) inside `rope_parameters`."""
        nested = self.config.get("rope_parameters")
        if isinstance(nested, Mapping):
            if nested.get("rope_type", "default") != "default":
                raise ModelError(
                    f"config.json: rope_parameters.rope_type={nested['rope_type']!r} is not supported "
                    f"for {self.family}; supported: 'default'"
                )
            if "rope_theta" in nested and "rope_theta" not in self.config:
                return Fields(nested, self.family).float("rope_theta")
        return self.float("rope_theta", default)

    def at_most(self, key: str, limit: str) -> builtins.int:
        """An integer from 1 to the value of another key."""
        value, most = self.int(key), self.int(limit)
        if value > most:
            raise ModelError(f"config.json: {key}={value} must not exceed {limit}={most}")
        return value

    def rotary_dim(self, head_dim: builtins.int) -> builtins.int:
        """How many dimensions of a head turn: `rotary_dim`, `partial_rotary_factor` (either place), or all.

        Raises ModelError for an odd number, one beyond the head, or keys that contradict each other.
        """
        nested = self.config.get("rope_parameters")
        found = {}
        if self.config.get("rotary_dim") is not None:
            found["rotary_dim"] = self.int("rotary_dim")
        if self.config.get("partial_rotary_factor") is not None:
            found["partial_rotary_factor"] = builtins.int(
                head_dim * self.float("partial_rotary_factor")
            )
        if isinstance(nested, Mapping) and nested.get("partial_rotary_factor") is not None:
            factor = Fields(nested, self.family).float("partial_rotary_factor")
            found["rope_parameters.partial_rotary_factor"] = builtins.int(head_dim * factor)
        said = ", ".join(f"{key} says {value}" for key, value in found.items())
        if len(set(found.values())) > 1:
            raise ModelError(
                f"config.json: of {head_dim} dimensions of a head, {said}; they must agree"
            )
        turned = next(iter(found.values()), head_dim)
        if turned % 2 or not 0 < turned <= head_dim:
            raise ModelError(
                f"config.json: of {head_dim} dimensions of a head, {said}; must be even, 2 to {head_dim}"
            )
        return turned

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
    d_model, num_heads = get.int("hidden_size"), get.int("num_attention_heads")
    num_kv_heads = get.int("num_key_value_heads", num_heads)
    width = d_model if head_width is None else head_width * num_heads
    end = get.int("eos_token_id", eos_id, least=0)
    values: dict[str, Any] = {
        "vocab_size": get.int("vocab_size"),
        "d_model": d_model,
        "num_layers": get.int("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": get.head_dim(width, num_heads, num_kv_heads),
        "rope_theta": get.rope_theta(rope_theta),
        "norm_eps": get.float("rms_norm_eps", norm_eps),
        "max_length": get.int("max_position_embeddings", max_length),
        "mask_id": get.int("mask_token_id", mask_id, least=0),
        "eos_id": end,
        "pad_id": get.int("pad_token_id", end, least=0),
        "tie_embeddings": bool(get.config.get("tie_word_embeddings")),
    }
    if "d_ff" not in own:
        values["d_ff"] = get.int("intermediate_size")
    return ModelSpec(family=family, **(values | own))
