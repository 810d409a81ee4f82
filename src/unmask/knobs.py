"""Typed `key=value` settings for dataclasses: knobs of decoders, recipe keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import yaml

from unmask.errors import ConfigError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def set_field(field: dataclasses.Field[Any], value: Any) -> Any:
    """`value` (a Python value, or text in YAML's spelling) as the field's type.

    Raises ConfigError with the field's name when it does not fit. Field types are int, float, bool,
    str, tuples of one of them, Literal strings, and any of these or None.
    """
    hint = _resolve(field)
    if isinstance(value, str) and not _takes_text(hint):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{field.name}={value!r} cannot be read") from None
    return _convert(field.name, hint, value)


def _resolve(field: dataclasses.Field[Any]) -> Any:
    if isinstance(field.type, str):
        return eval(  # the annotation of one of our own dataclasses, as text
            field.type, {"Literal": typing.Literal, "tuple": tuple}
        )
    return field.type


def _takes_text(hint: Any) -> bool:
    return hint is str or typing.get_origin(hint) is typing.Literal


def _convert(name: str, hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None or value == "null":
            if type(None) in options:
                return None
        rest = [option for option in options if option is not type(None)]
        return _convert(name, rest[0], value)
    if origin is typing.Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{name}={value!r}: allowed are {', '.join(map(str, allowed))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}={value!r} must be a list, e.g. {name}=[1,2]")
        return tuple(_convert(name, typing.get_args(hint)[0], item) for item in value)
    if hint is float and isinstance(value, str):
        try:
            value = float(value)  # YAML reads 3e-3 as text
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name}={value!r} must be {_WORDS.get(hint, hint.__name__)}")
    return value
