"""Checks of the documented directions of knobs, found by the name of method and knob."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType

Run = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """A test of one method's knob, and the ends of its range that it tries."""

    ends: frozenset[str]
    run: Run


CHECKS: dict[tuple[str, str], Check] = {}


def direction(knob: str, *owners: str, ends: str) -> Callable[[Run], Run]:
    """Register a check of `owner.knob`; `ends` are the labels of its help or its values, by commas."""

    def register(run: Run) -> Run:
        for owner in owners:
            assert (owner, knob) not in CHECKS, f"{owner}.{knob} has two checks"
            CHECKS[owner, knob] = Check(frozenset(map(str.strip, ends.split(","))), run)
        return run

    return register


LABEL = re.compile(
    r"(?:^|[;,(] ?)((?:(?:near|at|far beyond|below) )?(?:-?[a-z0-9_][\w.]*)"
    r"(?: or (?:more|-?\w+))?): "
)


def documented_ends(cls: type, field: dataclasses.Field) -> set[str]:
    """The values of a choice; else the labels `small: ...`, `0: ...` of the help."""
    hint = typing.get_type_hints(cls)[field.name]
    inner = [
        kind
        for kind in (typing.get_args(hint) if _is_union(hint) else (hint,))
        if kind is not type(None)
    ]
    if inner == [bool]:
        return {"true", "false"}
    if typing.get_origin(inner[0]) is typing.Literal:
        return set(typing.get_args(inner[0]))
    return set(LABEL.findall(field.metadata["help"]))


def is_number(cls: type, field: dataclasses.Field) -> bool:
    hint = typing.get_type_hints(cls)[field.name]
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, UnionType)
