"""Registry of the decoders: find them by name, and build them from their knobs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from unmask.canvas import check_statistics
from unmask.decoders.base.protocol import AnyDecoder, Decoder, Wrapper
from unmask.errors import ConfigError, PluginError, unknown_name
from unmask.knobs import field_names, field_values, set_field, split_call
from unmask.own_code import Workshop
from unmask.plugins import Registry, load_class

PACKAGE = "unmask.decoders"


@cache
def _load(name: str) -> type[AnyDecoder]:
    """Import a decoder's class. Raises PluginError for a file that cannot be used."""
    cls: type[AnyDecoder] = load_class(PACKAGE, name, "DECODER", Decoder)  # type: ignore[type-abstract]
    if issubclass(cls, Wrapper):
        return cls
    try:
        check_statistics(f"{cls.__name__}.stats", cls().stats)
    except Exception as error:
        raise PluginError(
            f"{sys.modules[cls.__module__].__file__}: {cls.__name__}() fails ({error}); correct or "
            f"delete this file"
        ) from error
    return cls


REGISTRY: Registry[type[AnyDecoder]] = Registry(PACKAGE, ("base", "registry"), "decoder", _load)
names, broken, served_names = REGISTRY.names, REGISTRY.broken, REGISTRY.served_names
WORKSHOP = Workshop(REGISTRY, Decoder, "DECODER", "unmask.decoders")  # type: ignore[type-abstract]
_released = cache(REGISTRY.get)


def decoder_class(name: str) -> type[AnyDecoder]:
    """Return a decoder's class. Raises ConfigError for an unknown name."""
    return REGISTRY.own.get(name) or _released(name)


def finds_length(name: str) -> bool:
    """Return True if a decoder chooses the answer's length. Raises ConfigError for an unknown name."""
    return decoder_class(name).chooses_length


def knob_names(name: str, knobs: Mapping[str, object] | None = None) -> set[str]:
    """Return the names of a decoder's knobs, including those of a decoder that it wraps."""
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
        inner_knobs = {key: value for key, value in knobs.items() if key not in own}
        wrapped = str(knobs.get("inner", cls.default_inner()))
        if issubclass(decoder_class(wrapped), Wrapper):
            raise ConfigError(
                f"inner={wrapped!r} wraps a decoder itself; use a decoder that does not"
            )
        if "compat" in knobs:
            inner_knobs["compat"] = knobs["compat"]
        inner = make_decoder(wrapped, inner_knobs)
        if inner.whole_blocks:
            raise ConfigError(
                f"whole_blocks=True has no effect inside decoder {name!r}; leave it out"
            )
        own_knobs = {key: value for key, value in knobs.items() if key in own - {"inner"}}
        return cls(inner=inner, **_typed(cls, own_knobs))
    for key in knobs:
        if key not in own:
            raise unknown_name(f"knob for decoder {name!r}:", key, own)
    return cls(**_typed(cls, knobs))


def _typed(cls: type[AnyDecoder], knobs: Mapping[str, object]) -> dict[str, Any]:
    return {key: set_field(cls, key, value) for key, value in knobs.items()}


def describe(decoder: AnyDecoder) -> str:
    """Format a decoder as `name(knob=value, ...)` without knobs at their defaults."""
    values = field_values(decoder)
    inner = [f"inner={describe(decoder.inner)}"] if isinstance(decoder, Wrapper) else []
    knobs = [
        f"{field.name}={values[field.name]}"
        for field in dataclasses.fields(decoder)
        if field.name != "inner" and values[field.name] != field.default
    ]
    return f"{decoder.name}({', '.join(inner + knobs)})" if inner or knobs else decoder.name
