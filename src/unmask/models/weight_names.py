"""Mapping between stored tensors and the network's parameters, from a family's list of names.

A row of the list is `(theirs, ours)`: the checkpoint's name and the parameter's. `{i}` is the layer, `{p}`
weight or bias. `{e}` in theirs is one expert of a stacked parameter. Several names in ours are concatenated
along the stored tensor's rows. A parameter that occurs in several rows may be stored in any of these
layouts, the first being the family's own, and every parameter under its `own_name`.
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
    """One stored tensor: its shape, parameters and expert (None: all); `is_first`: the family's layout."""

    shape: Shape
    ours: tuple[str, ...]
    expert: int | None
    is_first: bool

    def rows(self, shapes: Mapping[str, Shape]) -> list[int]:
        """Return the number of its rows for each of `ours`."""
        return [_rows(shapes[name]) for name in self.ours]

    @property
    def row_dim(self) -> int:
        """The dimension of its rows."""
        return max(0, len(self.shape) - 2)


def layout(shapes: Mapping[str, Shape], names: NameMap) -> dict[str, StoredName]:
    """Return every tensor that may be stored, by name, for parameters of the given `shapes`.

    Raises AssertionError when the family's list has no name for a parameter.
    """
    places: dict[str, list[tuple[str, str]]] = {}
    for name in shapes:
        generic, layer, suffix = _generic(name)
        for template in (generic, generic.replace("{p}", suffix)):
            places.setdefault(template, []).append((layer, suffix))
    result: dict[str, StoredName] = {}
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
                result.setdefault(name, StoredName(shape, ours, expert, covered.isdisjoint(ours)))
            ours_now.update(ours)
        covered |= ours_now
    for name, whole in shapes.items():
        result.setdefault(own_name(name), StoredName(whole, (name,), None, False))
    unnamed = sorted(shapes.keys() - covered)
    assert not unnamed, f"no checkpoint name for {', '.join(unnamed)}"
    return result


def own_name(ours: str) -> str:
    """Return the stored name of an unchanged parameter, the same in any family."""
    return f"unmask.{ours}"


def own_names(shapes: Mapping[str, Shape]) -> NameMap:
    """Return the list of names of a checkpoint that stores every parameter unchanged."""
    generic = dict.fromkeys(_generic(name)[0] for name in shapes)
    return [(own_name(name), name) for name in generic]


def runs(place: StoredName, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int, int]]:
    """Yield a stored tensor's elements in order as runs: (parameter, first element in it, count)."""
    offsets = [(place.expert or 0) * prod(shapes[name][1:]) for name in place.ours]
    if len(place.ours) == 1:
        yield place.ours[0], offsets[0], prod(place.shape)
        return
    width = prod(place.shape[place.row_dim + 1 :])
    counts = [rows * width for rows in place.rows(shapes)]
    for outer in range(prod(place.shape[: place.row_dim])):
        for name, first, count in zip(place.ours, offsets, counts, strict=True):
            yield name, first + outer * count, count


def checkpoint_name(ours: str, names: NameMap) -> str:
    """Return the checkpoint's name of a parameter that has its own tensor."""
    return own_tensor(ours, names)[0]


def own_tensor(ours: str, names: NameMap) -> tuple[str, tuple[str, ...]]:
    """Return the tensor of the family's own layout that holds a parameter, and all parameters in it."""
    generic, layer, suffix = _generic(ours)
    for theirs, mine in names:
        held = (mine,) if isinstance(mine, str) else mine
        if generic in held or generic.replace("{p}", suffix) in held:
            return (
                theirs.format(i=layer, p=suffix),
                tuple(each.format(i=layer, p=suffix) for each in held),
            )
    raise AssertionError(f"no checkpoint name for {ours}")


def _generic(ours: str) -> tuple[str, str, str]:
    """Return a parameter's name with {i} and {p} for its layer and suffix, then both."""
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
