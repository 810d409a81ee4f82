"""Find decoders by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unmask.decoders.base.presets import with_preset
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, read_value, set_field, split_call

PACKAGE = "unmask.decoders"
NO_DECODERS = {"base", "registry"}


def names() -> list[str]:
    """Every decoder's name."""
    modules = iter_modules(import_module(PACKAGE).__path__)
    return sorted(item.name for item in modules if item.name not in NO_DECODERS)


@cache
def decoder_class(name: str) -> Any:
    """The dataclass of a decoder. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("decoder", str(name), names())
    return import_module(f"{PACKAGE}.{name}").DECODER


def finds_length(name: str) -> bool:
    """Whether a decoder chooses the answer's length itself. Raises ConfigError for an unknown name."""
    return bool(getattr(decoder_class(name), "chooses_length", False))


def resolve(name: str, knobs: dict[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """The method that a name and its knobs stand for, its knobs, and what was changed (or None).

    `prophet(inner=cadllm)` carries knobs in the name. `preset` is a family's own sampler (`_presets`).
    `vanilla` with `threshold`, `factor`, `gamma` or `debias` is the founding documents' way to write
    another method. Raises ConfigError.
    """
    name, inside = split_call(name)
    for key, value in inside.items():
        if key in knobs and str(knobs[key]) != str(value):
            raise ConfigError(f"{key}={value} and {key}={knobs[key]} contradict; give one of them")
    knobs = {**inside, **knobs}
    if "preset" in knobs:
        decoder_class(name)
        name, knobs, told = with_preset(name, knobs)
        if told is not None:
            return name, knobs, told
    cls = decoder_class(name)
    if "inner" in field_names(cls):
        own = field_names(cls)
        wrapped, _ = split_call(str(knobs.get("inner", cls.inner)))
        theirs = {key for key in knobs if key not in own and key in knob_names(wrapped)}
        found, inner, said = resolve(
            str(knobs.get("inner", cls.inner)), {key: knobs[key] for key in theirs}
        )
        rest = {key: value for key, value in knobs.items() if key not in theirs}
        return name, {**rest, **inner, "inner": found}, said
    return _by_alias(name, knobs, getattr(cls, "STANDS_FOR", {}))


def _by_alias(
    name: str, knobs: dict[str, Any], aliases: dict[str, Any]
) -> tuple[str, dict[str, Any], str | None]:
    """What the aliases among a decoder's knobs make of it."""
    found = [key for key in aliases if key in knobs and not _is_off(knobs[key])]
    knobs = {key: value for key, value in knobs.items() if key not in aliases or key in found}
    if not found:
        return name, knobs, None
    more: dict[str, Any] = {}
    if len(found) == 2 and "debias" in found and "gamma" not in found:
        found.remove("debias")  # a modifier of the other rule
        more = {"score": "pc"}
        del knobs["debias"]
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(found)} name different methods; give one of them")
    target, changes = aliases[found[0]]
    taken = knob_names(target)
    knobs = {key: value for key, value in knobs.items() if key != found[0] or key in taken}
    knobs |= {key: value for key, value in {**changes, **more}.items() if key not in knobs}
    said = f"decoder {name} with {found[0]} is {target}"
    if "steps" in knobs and "steps" not in taken:
        said += f", which has no schedule: steps={knobs.pop('steps')} has no effect"
    return target, knobs, said


def _is_off(value: Any) -> bool:
    """Whether an alias is written but switched off: null or false, not the number 0."""
    value = read_value(value)
    return value is None or value is False


def knob_names(name: str, knobs: dict[str, Any] | None = None) -> set[str]:
    """Knobs that a decoder takes, those of what it wraps included."""
    cls = decoder_class(name)
    own = field_names(cls)
    if "inner" not in own:
        return own | set(getattr(cls, "STANDS_FOR", {}))
    inner, _ = split_call(str((knobs or {}).get("inner", cls.inner)))
    return own | knob_names(inner)


def make_decoder(name: str, knobs: dict[str, Any]) -> Any:
    """A decoder with these knobs, all of which it has. Raises ConfigError for a wrong name or value."""
    cls = decoder_class(name)
    own = field_names(cls)
    if "inner" in own:
        inner = {key: value for key, value in knobs.items() if key not in own}
        wrapped = str(knobs.get("inner", cls.inner))
        if "inner" in field_names(decoder_class(wrapped)):
            raise ConfigError(f"inner={wrapped!r} wraps a decoder itself; use one that does not")
        if "compat" in knobs:
            inner["compat"] = knobs["compat"]
        made = make_decoder(wrapped, inner)
        if getattr(made, "whole_blocks", False):
            raise ConfigError(
                f"whole_blocks=True has no effect inside decoder {name!r}; leave it out"
            )
        own_knobs = {key: value for key, value in knobs.items() if key in own - {"inner"}}
        return cls(inner=made, **_typed(cls, own_knobs))
    for key in knobs:
        if key not in own:
            raise unknown_name(f"knob for decoder {name!r}:", key, own)
    return cls(**_typed(cls, knobs))


def _typed(cls: Any, knobs: dict[str, Any]) -> dict[str, Any]:
    return {key: set_field(cls, key, value) for key, value in knobs.items()}


def decoder_name(decoder: Any) -> str:
    """The name of a decoder's method."""
    return str(type(decoder).__module__.rpartition(".")[2])


def describe(decoder: Any) -> str:
    """A decoder as `name(knob=value, ...)`, knobs at their defaults left out."""
    shown = []
    for item in dataclasses.fields(decoder):
        value = getattr(decoder, item.name)
        if item.name == "inner":
            shown.append(f"inner={describe(value)}")
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = decoder_name(decoder)
    return f"{name}({', '.join(shown)})" if shown else name
