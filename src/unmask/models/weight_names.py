"""Which stored tensor holds which of our parameters: a family's list of names, spelled out.

A row of the list is `(theirs, ours)`. `{i}` is the layer, `{p}` weight or bias. `{e}` in theirs: one
expert of our stack. Several of ours: they lie behind each other in the stored tensor's rows. A parameter
that comes again further down may be stored in that way instead, and every one under its `own_name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
NameMap = Sequence[tuple[str, str | tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class StoredName:
    """One stored tensor: its shape, whose it is, which expert's (None: all), the family's first way."""

    shape: Shape
    ours: tuple[str, ...]
    expert: int | None
    is_first: bool

    def rows(self, shapes: Mapping[str, Shape]) -> list[int]:
        """How many rows of it each of `ours` has."""
        return [_rows(shapes[name]) for name in self.ours]

    @property
    def row_dim(self) -> int:
        """The dimension of its rows."""
        return max(0, len(self.shape) - 2)


def layout(shapes: Mapping[str, Shape], names: NameMap) -> dict[str, StoredName]:
    """Every tensor that may be stored, by name, for our parameters `shapes`.

    Each parameter has a way to be stored; AssertionError when the family's list forgot one.
    """
    places: dict[str, list[tuple[str, str]]] = {}
    for name in shapes:
        generic, layer, suffix = _generic(name)
        for template in (generic, generic.replace("{p}", suffix)):
            places.setdefault(template, []).append((layer, suffix))
    found: dict[str, StoredName] = {}
    covered: set[str] = set()
    for theirs, targets in names:
        templates = (targets,) if isinstance(targets, str) else targets
        ours_now: set[str] = set()
        for layer, suffix in places.get(templates[0], ()):
            ours = tuple(template.format(i=layer, p=suffix) for template in templates)
            whole = shapes[ours[0]]
            experts = range(whole[0]) if "{e}" in theirs else (None,)
            for expert in experts:
                shape = _joined([shapes[name][expert is not None :] for name in ours])
                name = theirs.format(i=layer, p=suffix, e=expert)
                found.setdefault(name, StoredName(shape, ours, expert, covered.isdisjoint(ours)))
            ours_now.update(ours)
        covered |= ours_now
    for name, whole in shapes.items():
        found.setdefault(own_name(name), StoredName(whole, (name,), None, False))
    forgotten = sorted(shapes.keys() - covered)
    assert not forgotten, f"no checkpoint name for {', '.join(forgotten)}"
    return found


def own_name(ours: str) -> str:
    """What a file calls a parameter that is stored as we hold it, in any family."""
    return f"unmask.{ours}"


def own_names(shapes: Mapping[str, Shape]) -> NameMap:
    """The list of names of a checkpoint in which every parameter is stored as we hold it."""
    generic = dict.fromkeys(_generic(name)[0] for name in shapes)
    return [(own_name(name), name) for name in generic]


def runs(place: StoredName, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int, int]]:
    """A stored tensor's numbers in their order: whose they are, from which of its own on, how many."""
    skipped = [(place.expert or 0) * prod(shapes[name][1:]) for name in place.ours]
    if len(place.ours) == 1:
        yield place.ours[0], skipped[0], prod(place.shape)
        return
    width = prod(place.shape[place.row_dim + 1 :])
    counts = [rows * width for rows in place.rows(shapes)]
    for outer in range(prod(place.shape[: place.row_dim])):
        for name, first, count in zip(place.ours, skipped, counts, strict=True):
            yield name, first + outer * count, count


def checkpoint_name(ours: str, names: NameMap) -> str:
    """The checkpoint's name of a parameter that has a tensor for itself."""
    generic, layer, suffix = _generic(ours)
    for theirs, mine in names:
        if mine in (generic, generic.replace("{p}", suffix)):
            return theirs.format(i=layer, p=suffix)
    raise AssertionError(f"no checkpoint name for {ours}")


def _generic(ours: str) -> tuple[str, str, str]:
    """A parameter's name with {i} and {p}, its layer and its last word."""
    stem, _, suffix = ours.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", stem)
    if layer is None:
        return f"{stem}.{{p}}", "", suffix
    return f"layers.{{i}}.{stem[layer.end() :]}.{{p}}", layer.group(1), suffix


def _rows(shape: Shape) -> int:
    return shape[max(0, len(shape) - 2)]


def _joined(shapes: list[Shape]) -> Shape:
    at = max(0, len(shapes[0]) - 2)
    return (*shapes[0][:at], sum(shape[at] for shape in shapes), *shapes[0][at + 1 :])
