"""Parts of the rules of a grammar, and the rules that stand at an end of each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from unmask.grammar.nodes import Chars, Text


@dataclass(frozen=True, slots=True)
class RuleName:
    """A use of a rule."""

    name: str


@dataclass(frozen=True, slots=True)
class InOrder:
    """Parts one after another."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """Alternatives."""

    options: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """A part, `low` to `high` (None: no limit) times."""

    item: Part
    low: int
    high: int | None


Part = RuleName | InOrder | OneOf | Times | Chars | Text


def names_in(part: Part) -> Iterator[str]:
    """Yield the rules that a part uses."""
    if isinstance(part, RuleName):
        yield part.name
    for inner in parts_in(part):
        yield from names_in(inner)


def parts_in(part: Part) -> tuple[Part, ...]:
    """Return the parts of a part."""
    if isinstance(part, InOrder):
        return part.parts
    if isinstance(part, OneOf):
        return part.options
    return (part.item,) if isinstance(part, Times) else ()


def end_names(part: Part, *, is_tail: bool, is_beside: bool = False) -> Iterator[str]:
    """Yield the rules that a part may end with (begin with, if not `is_tail`), as it is written.

    With `is_beside`, only those beside which the part has more.
    """
    if isinstance(part, RuleName):
        if not is_beside:
            yield part.name
    elif isinstance(part, OneOf):
        for option in part.options:
            yield from end_names(option, is_tail=is_tail, is_beside=is_beside)
    elif isinstance(part, Times) and part.high != 0:
        is_beside = is_beside and part.high == 1
        yield from end_names(part.item, is_tail=is_tail, is_beside=is_beside)
    elif isinstance(part, InOrder) and part.parts:
        last, is_beside = part.parts[-1 if is_tail else 0], is_beside and len(part.parts) == 1
        yield from end_names(last, is_tail=is_tail, is_beside=is_beside)


def recursive_groups(rules: Mapping[str, Part], *, is_tail: bool) -> dict[str, frozenset[str]]:
    """Return, for each rule that leads to itself through the ends (the beginnings) of rules, its group.

    The rules of a group all lead to each other.
    """
    after = {
        name: set(end_names(part, is_tail=is_tail)) & rules.keys() for name, part in rules.items()
    }
    before: dict[str, set[str]] = {name: set() for name in rules}
    for name, others in after.items():
        for other in others:
            before[other].add(name)
    groups: dict[str, frozenset[str]] = {}
    seen: set[str] = set()
    for name in reversed(_finishing_order(rules, after)):  # Kosaraju's two passes
        if name in seen:
            continue
        group, waiting = {name}, [name]
        seen.add(name)
        while waiting:
            fresh = before[waiting.pop()] - seen
            seen |= fresh
            group |= fresh
            waiting += fresh
        if len(group) > 1 or name in after[name]:
            groups.update(dict.fromkeys(group, frozenset(group)))
    return groups


def _finishing_order(names: Iterable[str], after: Mapping[str, set[str]]) -> list[str]:
    """Return all names in the order in which a depth-first search leaves them."""
    order: list[str] = []
    seen: set[str] = set()
    for first in names:
        if first in seen:
            continue
        seen.add(first)
        stack = [(first, iter(sorted(after[first])))]
        while stack:
            name, others = stack[-1]
            other = next((each for each in others if each not in seen), None)
            if other is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(other)
                stack.append((other, iter(sorted(after[other]))))
    return order
