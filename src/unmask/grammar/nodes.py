"""Syntax trees of regular languages over Unicode text, the common form of all constraints.

Every function that builds a node is pure; `byte_automaton.compile_node` turns a tree into an automaton.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
"""Inclusive ranges of code points, ascending and disjoint."""

MAX_CODE_POINT = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
"""Code points that UTF-8 does not encode; no constraint allows them."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set; an empty set matches nothing."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Text:
    """A fixed text in UTF-8; the empty text matches nothing but itself."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts one after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of the options; without options it matches nothing."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`low` to `high` (None: no limit) items, with a separator between two of them."""

    item: Node
    low: int = 0
    high: int | None = None
    separator: Node | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """Items in a fixed order, separated; each pair is `(item, is_required)`."""

    items: tuple[tuple[Node, bool], ...]
    separator: Node


@dataclass(frozen=True, slots=True)
class Graph:
    """The texts along the walks from state `start` to `end`; an edge is `(state, node, next state)`."""

    edges: tuple[tuple[int, Node, int], ...]
    start: int
    end: int


Node = Chars | Text | Concat | Either | Repeat | Members | Graph

NOTHING = Either(())
"""The language without any text."""
EMPTY = Text(b"")


def text(value: str) -> Text:
    """Return the node of a fixed text."""
    return Text(value.encode("utf-8"))


def concat(*parts: Node | str) -> Node:
    """Return the concatenation of nodes and fixed texts."""
    return Concat(tuple(text(part) if isinstance(part, str) else part for part in parts))


def either(options: Iterable[Node | str]) -> Node:
    """Return the union of nodes and fixed texts."""
    return Either(tuple(text(each) if isinstance(each, str) else each for each in options))


def optional(node: Node) -> Node:
    """Return the node or the empty text."""
    return Repeat(node, 0, 1)


def chars(characters: str) -> Chars:
    """Return one of the given characters."""
    return Chars(union((ord(each), ord(each)) for each in characters))


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of ranges: ascending, disjoint and not adjacent."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """Return all other code points."""
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    if start <= MAX_CODE_POINT:
        found.append((start, MAX_CODE_POINT))
    return tuple(found)


def intersect(first: Ranges, second: Ranges) -> Ranges:
    """Return the code points in both sets."""
    return complement(union((*complement(first), *complement(second))))
