"""Find decoders by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unmask.decoders.base.presets import with_preset
from unmask.decoders.base.protocol import AnyDecoder, Wrapper
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, read_value, set_field, split_call

PACKAGE = "unmask.decoders"
NO_DECODERS = {"base", "registry"}


def names() -> list[str]:
    """Every decoder's name."""
    modules = iter_modules(import_module(PACKAGE).__path__)
    return sorted(item.name for item in modules if item.name not in NO_DECODERS)


@cache
def decoder_class(name: str) -> type[AnyDecoder]:
    """The dataclass of a decoder. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("decoder", str(name), names())
    found: type[AnyDecoder] = import_module(f"{PACKAGE}.{name}").DECODER
    return found


def finds_length(name: str) -> bool:
    """Whether a decoder chooses the answer's length itself. Raises ConfigError for an unknown name."""
    return decoder_class(name).chooses_length


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
    if issubclass(cls, Wrapper):
        own = field_names(cls)
        wrapped, _ = split_call(str(knobs.get("inner", cls.default_inner())))
        theirs = {key for key in knobs if key not in own and key in knob_names(wrapped)}
        found, inner, said = resolve(
            str(knobs.get("inner", cls.default_inner())), {key: knobs[key] for key in theirs}
        )
        rest = {key: value for key, value in knobs.items() if key not in theirs}
        return name, {**rest, **inner, "inner": found}, said
    return _by_alias(name, knobs, cls.STANDS_FOR)


def _by_alias(
    name: str, knobs: dict[str, Any], aliases: Mapping[str, tuple[str, Mapping[str, object]]]
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
    if not issubclass(cls, Wrapper):
        return own | set(cls.STANDS_FOR)
    inner, _ = split_call(str((knobs or {}).get("inner", cls.default_inner())))
    return own | knob_names(inner)


def make_decoder(name: str, knobs: dict[str, Any]) -> AnyDecoder:
    """A decoder with these knobs, all of which it has. Raises ConfigError for a wrong name or value."""
    cls = decoder_class(name)
    own = field_names(cls)
    if issubclass(cls, Wrapper):
        inner = {key: value for key, value in knobs.items() if key not in own}
        wrapped = str(knobs.get("inner", cls.default_inner()))
        if issubclass(decoder_class(wrapped), Wrapper):
            raise ConfigError(f"inner={wrapped!r} wraps a decoder itself; use one that does not")
        if "compat" in knobs:
            inner["compat"] = knobs["compat"]
        made = make_decoder(wrapped, inner)
        if made.whole_blocks:
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


def describe(decoder: AnyDecoder) -> str:
    """A decoder as `name(knob=value, ...)`, knobs at their defaults left out."""
    shown = []
    for item in dataclasses.fields(decoder):
        value = getattr(decoder, item.name)
        if item.name == "inner":
            shown.append(f"inner={describe(value)}")
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = decoder.name
    return f"{name}({', '.join(shown)})" if shown else name
