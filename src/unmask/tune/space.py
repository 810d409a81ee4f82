"""What is searched: the ranges that a decoder's knobs have of their own, changed by `knob=lo:hi`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask import decoders
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, read_value, set_field
from unmask.sampling.params import SamplingParams

if TYPE_CHECKING:
    import optuna

WIDE = 100
"""From this ratio of its ends on a range is searched in logarithms."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_whole: bool

    @property
    def is_log(self) -> bool:
        """Whether it spans orders of magnitude."""
        return self.low > 0 and self.high / self.low >= WIDE

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        """As it is typed."""
        return ",".join("null" if value is None else str(value).lower() for value in self.values)


Space = dict[str, Range | Choice]


def space_of(decoder: str, changes: Mapping[str, str], fixed: Sequence[str] = ()) -> Space:
    """The search space of a decoder: its knobs' own ranges, changed or added to, without fixed knobs.

    A change is `lo:hi`, `a,b,c`, or `off` to leave the knob at its default. Raises ConfigError for unknown
    knobs, ranges that cannot be read and a space without knobs.
    """
    cls = decoders.decoder_class(decoder)
    found: Space = {}
    for item in dataclasses.fields(cls):
        ends = item.metadata.get("tune")
        if ends is not None and item.name not in fixed:
            low, high = ends
            found[item.name] = Range(low, high, _is_whole(cls, item.name))
    for name, text in changes.items():
        owner = _owner(cls, decoder, name)
        if name in fixed:
            raise ConfigError(f"{name} is given and searched; leave one of them out")
        if text == "off":
            if name not in found:
                raise ConfigError(f"space {name}=off: {name} is not searched anyway")
            del found[name]
        else:
            found[name] = _parse(owner, name, text)
    if not found:
        raise ConfigError(
            f"decoder {decoder} has no knobs with a range of their own left to search; say one with "
            f"--space KNOB=LOW:HIGH or KNOB=A,B,C"
        )
    return found


def parse_changes(texts: Sequence[str]) -> dict[str, str]:
    """`knob=range` words. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not name.strip() or not rest.strip():
            raise ConfigError(f"space {text!r} must be KNOB=LOW:HIGH, KNOB=A,B,C or KNOB=off")
        if name.strip() in found:
            raise ConfigError(f"space of {name.strip()} is there twice; give it once")
        found[name.strip()] = rest.strip()
    return found


def _owner(cls: Any, decoder: str, name: str) -> Any:
    for owner in (cls, SamplingParams):
        if name in field_names(owner):
            return owner
    raise unknown_name(
        f"knob for decoder {decoder!r}:", name, field_names(cls) | field_names(SamplingParams)
    )


def _is_whole(cls: Any, name: str) -> bool:
    hint = typing.get_type_hints(cls)[name]
    return int in (hint, *typing.get_args(hint))


def _parse(cls: Any, name: str, text: str) -> Range | Choice:
    low, colon, high = text.partition(":")
    if not colon:
        values = tuple(set_field(cls, name, read_value(part.strip())) for part in text.split(","))
        if len(set(values)) < 2:
            raise ConfigError(f"space {name}={text}: give two values or more, or a range LOW:HIGH")
        return Choice(values)
    ends = [set_field(cls, name, read_value(end)) for end in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends):
        raise ConfigError(f"space {name}={text}: only numbers have ranges; list values instead")
    if not ends[0] < ends[1]:
        raise ConfigError(f"space {name}={text}: the lower end comes first")
    return Range(float(ends[0]), float(ends[1]), _is_whole(cls, name))


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A point of the space, as a trial draws it."""
    found: dict[str, Any] = {}
    for name, part in space.items():
        if isinstance(part, Choice):
            found[name] = part.values[trial.suggest_categorical(name, range(len(part.values)))]
        elif part.is_whole:
            low, high = int(part.low), int(part.high)
            found[name] = trial.suggest_int(name, low, high, log=part.is_log)
        else:
            found[name] = float(
                f"{trial.suggest_float(name, part.low, part.high, log=part.is_log):.4g}"
            )
    return found


def start_of(space: Space, decoder: str) -> dict[str, Any] | None:
    """The decoder's own defaults as a point of the space; None where one of them lies outside."""
    defaults = {
        item.name: item.default
        for cls in (SamplingParams, decoders.decoder_class(decoder))
        for item in dataclasses.fields(cls)
    }
    found: dict[str, Any] = {}
    for name, part in space.items():
        value = defaults[name]
        if isinstance(part, Choice):
            if value not in part.values:
                return None
            found[name] = part.values.index(value)
        elif isinstance(value, (int, float)) and part.low <= value <= part.high:
            found[name] = value
        else:
            return None
    return found
