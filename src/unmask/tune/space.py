"""Search spaces: the tuning ranges of a decoder's knobs, changed by `knob=lo:hi`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask import decoders
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, read_value, set_field
from unmask.sampling.params import SamplingParams

if TYPE_CHECKING:
    import optuna

WIDE = 100
"""Minimum ratio of the ends of a range that is searched on a logarithmic scale."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    is_whole: bool

    @property
    def is_log(self) -> bool:
        """True if it spans orders of magnitude."""
        return self.low > 0 and self.high / self.low >= WIDE

    def __str__(self) -> str:
        """Return the range in the syntax of `space_of`."""
        return f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Choice:
    """A finite set of values."""

    values: tuple[object, ...]

    def __str__(self) -> str:
        """Return the values in the syntax of `space_of`."""
        return ",".join("null" if value is None else str(value).lower() for value in self.values)


Space = dict[str, Range | Choice]


def space_of(decoder: str, changes: Mapping[str, str], fixed: Sequence[str] = ()) -> Space:
    """Return the search space of a decoder: the ranges of its knobs with changes, without fixed knobs.

    A change is `lo:hi`, `a,b,c`, or `off` to leave the knob at its default. Raises ConfigError for unknown
    knobs, ranges that cannot be parsed and an empty space.
    """
    cls = decoders.decoder_class(decoder)
    space: Space = {}
    for item in dataclasses.fields(cls):
        ends = item.metadata.get("tune")
        if ends is not None and item.name not in fixed:
            low, high = ends
            space[item.name] = Range(low, high, _is_whole(cls, item.name))
    for name, text in changes.items():
        owner = _owner(cls, decoder, name)
        if name in fixed:
            raise ConfigError(f"{name} is given and searched; leave one of them out")
        if text == "off":
            if name not in space:
                raise ConfigError(f"space {name}=off: {name} is not searched anyway")
            del space[name]
        else:
            space[name] = _parse(owner, name, text)
    if not space:
        raise ConfigError(
            f"decoder {decoder} has no knobs with a range of their own left to search; give one with "
            f"--space KNOB=LOW:HIGH or KNOB=A,B,C"
        )
    return space


def parse_changes(texts: Sequence[str]) -> dict[str, str]:
    """Parse `knob=range` words. Raises ConfigError."""
    changes: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not name.strip() or not rest.strip():
            raise ConfigError(f"space {text!r} must be KNOB=LOW:HIGH, KNOB=A,B,C or KNOB=off")
        if name.strip() in changes:
            raise ConfigError(f"space of {name.strip()} is set twice; set it once")
        changes[name.strip()] = rest.strip()
    return changes


def _owner(cls: type, decoder: str, name: str) -> type:
    for owner in (cls, SamplingParams):
        if name in field_names(owner):
            return owner
    raise unknown_name(
        f"knob for decoder {decoder!r}:", name, field_names(cls) | field_names(SamplingParams)
    )


def _is_whole(cls: type, name: str) -> bool:
    hint = typing.get_type_hints(cls)[name]
    return int in (hint, *typing.get_args(hint))


def _parse(cls: type, name: str, text: str) -> Range | Choice:
    low, colon, high = text.partition(":")
    if not colon:
        values = tuple(set_field(cls, name, read_value(part.strip())) for part in text.split(","))
        if len(set(values)) < 2:
            raise ConfigError(f"space {name}={text}: give two values or more, or a range LOW:HIGH")
        return Choice(values)
    ends = [set_field(cls, name, read_value(end)) for end in (low, high)]
    numbers = [float(e) for e in ends if isinstance(e, (int, float)) and not isinstance(e, bool)]
    if len(numbers) < 2:
        raise ConfigError(f"space {name}={text}: only numbers have ranges; list values instead")
    if not numbers[0] < numbers[1]:
        raise ConfigError(f"space {name}={text}: the lower end comes first")
    return Range(numbers[0], numbers[1], _is_whole(cls, name))


def suggest(trial: optuna.Trial, space: Space) -> dict[str, object]:
    """Draw a point of the space for a trial."""
    knobs: dict[str, object] = {}
    for name, part in space.items():
        if isinstance(part, Choice):
            knobs[name] = part.values[trial.suggest_categorical(name, range(len(part.values)))]
        elif part.is_whole:
            low, high = int(part.low), int(part.high)
            knobs[name] = trial.suggest_int(name, low, high, log=part.is_log)
        else:
            value = trial.suggest_float(name, part.low, part.high, log=part.is_log)
            knobs[name] = float(f"{value:.4g}")
    return knobs


def start_of(space: Space, decoder: str) -> dict[str, object] | None:
    """Return the decoder's defaults as parameters of a trial; None where one of them lies outside."""
    defaults = {
        item.name: item.default
        for cls in (SamplingParams, decoders.decoder_class(decoder))
        for item in dataclasses.fields(cls)
    }
    start: dict[str, object] = {}
    for name, part in space.items():
        value = defaults[name]
        if isinstance(part, Choice):
            if value not in part.values:
                return None
            start[name] = part.values.index(value)
        elif isinstance(value, (int, float)) and part.low <= value <= part.high:
            start[name] = value
        else:
            return None
    return start
