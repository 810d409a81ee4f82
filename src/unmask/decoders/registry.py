"""Find decoders by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unmask.decoders.base.protocol import AnyDecoder, Wrapper
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, set_field, split_call

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
    """Return True if a decoder chooses the answer's length. Raises ConfigError for an unknown name."""
    return decoder_class(name).chooses_length


def knob_names(name: str, knobs: Mapping[str, object] | None = None) -> set[str]:
    """Return the knobs that a decoder takes, those of what it wraps included."""
    cls = decoder_class(name)
    own = field_names(cls)
    if not issubclass(cls, Wrapper):
        return own
    inner, _ = split_call(str((knobs or {}).get("inner", cls.default_inner())))
    return own | knob_names(inner)


def make_decoder(name: str, knobs: Mapping[str, object]) -> AnyDecoder:
    """Build a decoder from knobs. Raises ConfigError for an unknown name or knob, or a wrong value."""
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


def _typed(cls: type[AnyDecoder], knobs: Mapping[str, object]) -> dict[str, Any]:
    return {key: set_field(cls, key, value) for key, value in knobs.items()}


def describe(decoder: AnyDecoder) -> str:
    """Format a decoder as `name(knob=value, ...)` without knobs at their defaults."""
    shown = []
    for item in dataclasses.fields(decoder):
        value = getattr(decoder, item.name)
        if item.name == "inner":
            shown.append(f"inner={describe(value)}")
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = decoder.name
    return f"{name}({', '.join(shown)})" if shown else name
