"""Typed `key=value` settings of dataclasses (knobs, recipe keys), and the merging of their sources."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import re
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from unmask.errors import ConfigError, ContradictionError, cut_text
from unmask.yaml_text import parse_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Pairs = tuple[tuple[int, int | str], ...]
"""Numbers or texts by a number, ascending: the type of a field that is written as a mapping."""
MAX_SHOWN = 80
"""Length to which an error shortens a value."""
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_INTERVAL = re.compile(r"\bin ([\[(])([^,\])]+), ([^\])]+)([\])])")
_LEAST = re.compile(
    rf"(?:(?P<zero>\b0) or )?\bat least (?:(?P<least>{_NUMBER})|[a-zA-Z]+_\w+)"
    rf"|> (?P<above>{_NUMBER})|>= (?P<from>{_NUMBER})"
)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def knob(default: Any, help: str, tune: tuple[float, float] | None = None) -> Any:
    """Declare a dataclass field with a help text: effect, unit, range, both extremes.

    `tune` is the range that `unmask tune` searches, for knobs that trade quality for speed.
    """
    return dataclasses.field(default=default, metadata={"help": help, "tune": tune})


@dataclasses.dataclass(frozen=True, slots=True)
class KnobRange:
    """The range of a number, as a help text states it: `text`, and those of its limits that are numbers.

    `least` and `most` are allowed values, `above` and `below` are not. None: no such limit, or the limit is
    another knob.
    """

    text: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None


def range_of(help: str) -> KnobRange | None:
    """Return the range that a help text states, None without one.

    The forms: "in [0, 1]" with round brackets for excluded limits, "at least 1" or the name of another
    knob, "0 or at least 1e-6", "> 0" and ">= 0".
    """
    found = _INTERVAL.search(help)
    if found is not None:
        opening, low, high, closing = found.groups()
        first, last = _limit(low), _limit(high)
        return KnobRange(
            found[0],
            least=first if opening == "[" else None,
            most=last if closing == "]" else None,
            above=first if opening == "(" else None,
            below=last if closing == ")" else None,
        )
    found = _LEAST.search(help)
    if found is None:
        return None
    if found["above"] is not None:
        return KnobRange(found[0], above=float(found["above"]))
    least = found["zero"] or found["least"] or found["from"]
    return KnobRange(found[0], least=None if least is None else float(least))


def _limit(text: str) -> float | None:
    return float(text) if re.fullmatch(_NUMBER, text) else None


def field_names(cls: type[Any]) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(cls)}


def field_values(instance: DataclassInstance) -> dict[str, Any]:
    """Return a dataclass's values by field name; nested dataclasses are not copied or converted."""
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return `value` as an int. Raises ConfigError when it is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name}={shorten(value)} must be a whole number")
    if least is not None and value < least:
        raise ConfigError(f"{name}={shorten(value)} must be at least {least}")
    return int(value)


def check_flags(**flags: object) -> None:
    """Raise ConfigError for a flag that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be True or False")


def positive(name: str, value: Any) -> float:
    """Return `value` as a float. Raises ConfigError when it is not a finite number above 0."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < float(value) < math.inf:
        raise ConfigError(f"{name}={value!r} must be a number above 0")
    return float(value)


def read_value(value: Any) -> Any:
    """Parse text as YAML; return other values, and text that is not valid YAML, unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return parse_yaml(value)
    except yaml.YAMLError:
        return value


def shorten(value: object) -> str:
    """Return the `repr` of a value, shortened to `MAX_SHOWN` characters."""
    return cut_text(repr(value), MAX_SHOWN)


def read_pairs(name: str, value: object) -> Pairs:
    """Return the pairs of a mapping, a list of pairs, or text of the form `0:value|7:value`.

    In such text all values are texts. Raises ConfigError.
    """
    if isinstance(value, str):
        value = [part.partition(":")[::2] for part in value.split("|")]
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, (list, tuple)) and len(item) == 2 for item in items
    ):
        raise ConfigError(
            f"{name}={shorten(value)} must map numbers to values, e.g. "
            f'{name}={{"7": 42, "9": "text"}} or {name}=7:text|9:text'
        )
    pairs: dict[int, int | str] = {}
    for key, item in items:
        is_digits = isinstance(key, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", key)
        number = whole(f"{name}: the key", int(key) if is_digits else key, 0)
        if number in pairs:
            raise ConfigError(f"{name} has the key {number} twice; give it once")
        pairs[number] = item if isinstance(item, str) else whole(f"{name}[{number}]", item)
    return tuple(sorted(pairs.items(), key=lambda pair: pair[0]))


def set_field(cls: type[Any], name: str, value: Any) -> Any:
    """Convert `value` (a Python value or YAML text) to the type of the dataclass's field `name`.

    Raises ConfigError with the field's name for a value of another type. Field types are int, float, bool,
    str, `Pairs`, tuples of one type, Literal strings, and unions of any of these with None.
    """
    hint = typing.get_type_hints(cls)[name]
    if isinstance(value, str) and _is_text_or_none(hint):
        return None if value.lower() in ("null", "~", "") else value
    is_pairs = Pairs in (hint, *typing.get_args(hint)) and not str(value).lstrip().startswith("{")
    if isinstance(value, str) and is_pairs:
        return None if value.lower() in ("null", "~", "") else read_pairs(name, value)
    if isinstance(value, str) and not _takes_text(hint):
        try:
            value = parse_yaml(value)
        except yaml.YAMLError:
            raise ConfigError(f"{name}={shorten(value)} cannot be read") from None
    return convert(name, hint, value)


def _takes_text(hint: Any) -> bool:
    return hint is str or typing.get_origin(hint) is typing.Literal


def _is_text_or_none(hint: Any) -> bool:
    """Return True for `str | None`, where text such as a folder called 2026 is not parsed, except null."""
    return set(typing.get_args(hint)) == {str, type(None)}


def convert(name: str, hint: Any, value: Any) -> Any:
    """Return `value` as the type `hint`. Raises ConfigError with the name for a value of another type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(origin):  # a wrapped decoder or cache, at this point still a name
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return convert(name, next(kind for kind in inner if kind is not type(None)), value)
    if hint == Pairs:
        return read_pairs(name, value)
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(f"{name}={shorten(value)}: allowed are {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name}={shorten(value)} must be a list, e.g. {name}=[1,2]")
        return tuple(convert(name, inner[0], item) for item in value)
    value = _widen(hint, value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name}={shorten(value)} must be {_WORDS.get(hint, hint.__name__)}")
    return value


def _widen(hint: Any, value: Any) -> Any:
    """Convert numbers to the type of the hint where nothing is lost; YAML reads 3e-3 as text."""
    if hint in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def split_commas(text: str, opening: str = "([{", closing: str = ")]}") -> list[str] | None:
    """Split a text at its commas outside of brackets; None if the brackets are unbalanced."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in opening) - (char in closing)
        if depth < 0:
            return None
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return None if depth else parts


def split_call(text: str) -> tuple[str, dict[str, str]]:
    """Split `name(key=value, ...)` into name and settings; `name` alone has none. Raises ConfigError.

    Values may contain calls and lists: commas inside brackets do not separate.
    """
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    if not rest.endswith(")"):
        raise ConfigError(f"{text!r} is not of the form name(key=value, ...)")
    parts = split_commas(rest[:-1], "([", ")]")
    if parts is None:
        raise ConfigError(f"the brackets of {text!r} do not match")
    pairs: dict[str, str] = {}
    for part in parts:
        if not part.strip() and len(parts) == 1:
            continue
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{part.strip()!r} in {text!r} is not of the form key=value")
        if key.strip() in pairs:
            raise ConfigError(f"{key.strip()} is given twice in {text!r}")
        pairs[key.strip()] = value.strip()
    return name.strip(), pairs


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Values by key, from one origin.

    `origin` names it in listings of values. `spelling` is the form of its keys in errors: "{key}", or
    "{flag}" with hyphens. Values of an `is_default` source give way to those of other sources; the values
    of all other sources must agree. With `is_soft`, keys that are not knobs of the method are ignored. With
    `is_adaptable`, nobody wrote the values for this call: they never make a written value an error.
    """

    values: Mapping[str, object] = dataclasses.field(default_factory=dict)
    origin: str = ""
    spelling: str = "{key}"
    is_default: bool = False
    is_soft: bool = False
    is_adaptable: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value and its source."""

    value: object
    source: Source

    def written(self, key: str) -> str:
        """Return `key=value` in the spelling of the source."""
        name = self.source.spelling.format(key=key, flag=key.replace("_", "-"))
        return f"{name}={self.value}"


def merge(*sources: Source) -> dict[str, SourcedValue]:
    """Merge sources, in order of precedence.

    Raises ContradictionError for a key with different values in two sources that are not defaults.
    """
    merged: dict[str, SourcedValue] = {}
    for source in sorted(sources, key=lambda source: source.is_default):
        for key, value in source.values.items():
            second = SourcedValue(value, source)
            first = merged.setdefault(key, second)
            if first is second or source.is_default:
                continue
            if not is_same(first.value, value):
                raise ContradictionError(key, first.written(key), second.written(key))
    return merged


def is_same(value: object, other: object) -> bool:
    """Return True if two values, parsed if they are text, are equal; true does not equal 1."""
    first, second = read_value(value), read_value(other)
    return first == second and isinstance(first, bool) == isinstance(second, bool)
