"""The decoding method of a composed configuration."""

from __future__ import annotations

from dataclasses import replace

from unmask.config.compose import Composed, Value
from unmask.method import CACHE_PREFIX, MethodSpec, Note, Source

OPTIONS = ("gen_length", "strategy", "num_transfer_tokens")
TRANSLATED = ("alg", "num_transfer_tokens")
"""Keys of the schema that are aliases of knobs."""


def method_of(composed: Composed) -> MethodSpec:
    """Return the method of a configuration. Raises ConfigError for knobs that it does not have or take."""
    knobs, notes = _one_rule(composed["generation.strategy"], _knobs(composed))
    layers: dict[str, dict[str, object]] = {}
    for key, item in knobs.items():
        layers.setdefault(item.layer, {})[key] = item.value
    soft = {item.layer for item in knobs.values() if item.is_soft}
    names = {"decoder": composed["generation.strategy"], "cache": composed["cache.name"]}
    spec = MethodSpec.parse(
        Source(names),
        *(
            Source(values, layer, is_soft=layer in soft, is_adaptable=layer in soft)
            for layer, values in layers.items()
        ),
        gen_length=composed["generation.gen_length"],
        options=OPTIONS,
        is_trusted=True,
    )
    return replace(spec, notes=(*notes, *spec.notes))


def _knobs(composed: Composed) -> dict[str, Value]:
    """Return the explicit knobs, with d2Cache's values for "none" replaced by unmask's."""
    knobs = composed.group("generation")
    if "sigma" in knobs and knobs["sigma"].value in (0, 0.0):
        knobs["sigma"] = replace(knobs["sigma"], value=None)
    if "temperature" in knobs and knobs["temperature"].value is None:
        del knobs["temperature"]
    for key in TRANSLATED:
        item = composed.values[f"generation.{key}"]
        if item.is_set and item.value is not None:
            knobs[key] = item
    inside = composed.group("cache")
    return knobs | {CACHE_PREFIX + key: item for key, item in inside.items()}


def _one_rule(name: str, knobs: dict[str, Value]) -> tuple[dict[str, Value], tuple[Note, ...]]:
    """Drop the threshold of a vanilla decoder that has a factor too: Fast-dLLM's commands add one."""
    rules = [knobs[key].value for key in ("threshold", "factor") if key in knobs]
    if name != "vanilla" or len(rules) < 2 or None in rules:
        return knobs, ()
    message = f"factor={rules[1]} takes the place of threshold={rules[0]}"
    rest = {key: value for key, value in knobs.items() if key != "threshold"}
    return rest, (Note("translated", "threshold", message),)
