"""Conversion of a checkpoint to another layout: the same values under other names, joined or split.

Every tensor of the target is assembled from the files of the source, a shard at a time: the memory needed
is one shard's, not the model's. Nothing is rounded: a tensor stays in its stored type.
"""

from __future__ import annotations

import json
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from unmask.durable import new_folder
from unmask.errors import ConfigError, ModelError, unknown_name
from unmask.models.registry import Family
from unmask.models.safetensors_files import DTYPES, INDEX, SINGLE, TensorEntry, read
from unmask.models.transformer import Transformer
from unmask.models.weight_names import NameMap, Shape, StoredName, layout, own_names, runs
from unmask.models.weights import Fit, Progress, check_tied, fit, shapes_of

SHARD_BYTES = 4_000_000_000
"""Maximum size of a shard, unless one tensor is larger."""
COPIED = ("*.json", "*.jinja", "*.md", "vocab*", "merges.txt", "LICENSE*", "NOTICE*")
"""Patterns of other files to copy; Python code is left out, as it is never run."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Counts of the written files."""

    num_files: int
    num_tensors: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """`count` elements of a parameter from `start` on, stored in a tensor from element `first` on."""

    start: int
    count: int
    tensor: TensorEntry
    first: int


@dataclass(frozen=True, slots=True)
class _Planned:
    name: str
    place: StoredName
    kind: str
    size_bytes: int


def forms(family: Family) -> tuple[str, ...]:
    """Return the layouts in which a family's weights may be stored."""
    return ("family", "unmask", *family.forms)


def form_names(family: Family, form: str, shapes: Mapping[str, Shape]) -> NameMap:
    """Return the family's list of names with those of `form` first. Raises ConfigError."""
    if form not in forms(family):
        raise unknown_name("form", form, forms(family))
    if form == "unmask":
        return own_names(shapes)
    return (*family.forms.get(form, ()), *family.names)


def convert(
    network: Transformer,
    family: Family,
    folders: tuple[Path, Path],
    form: str,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Converted:
    """Write the second of two `folders` from the first, with its weights in `form`.

    `network` is the source's, on the meta device. The target appears complete or not at all; a stored copy
    of a tied head is left out. Raises ConfigError (form, a target that exists) and
    ModelError (a source that does not fit its config; tensors of different types to be joined).
    """
    source, target = folders
    shapes = shapes_of(network)
    names = form_names(family, form, shapes)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already and is not overwritten; choose another folder")
    fitting = fit(source, shapes, family.names, network.spec.tie_embeddings)
    pieces = _pieces(fitting, shapes)
    shards = _shards(list(_plan(pieces, shapes, names)), shard_bytes)
    with new_folder(target) as partial:
        with ExitStack() as stack:
            gather = _Gather(pieces, shapes, stack)
            if fitting.head is not None:
                check_tied(source, fitting.head, gather.parameter("embed.weight"))
            size = _write(partial, shards, gather, progress)
        _copy_rest(source, partial)
        if target.exists():
            target.rmdir()
    return Converted(len(shards), sum(map(len, shards)), size)


def _pieces(fitting: Fit, shapes: Mapping[str, Shape]) -> dict[str, list[_Piece]]:
    """Return the stored pieces of every parameter, in order."""
    result: dict[str, list[_Piece]] = {name: [] for name in shapes}
    for tensor, place in fitting.pairs:
        first = 0
        for ours, start, count in runs(place, shapes):
            result[ours].append(_Piece(start, count, tensor, first))
            first += count
    return {name: sorted(pieces, key=lambda piece: piece.start) for name, pieces in result.items()}


def _overlaps(pieces: list[_Piece], start: int, count: int) -> Iterator[tuple[_Piece, int, int]]:
    """Yield the pieces that overlap a run of a parameter, with the first and end index of the overlap."""
    at = bisect_right(pieces, start, key=lambda piece: piece.start) - 1
    while at < len(pieces) and pieces[at].start < start + count:
        piece = pieces[at]
        yield piece, max(start, piece.start), min(start + count, piece.start + piece.count)
        at += 1


def _plan(
    pieces: Mapping[str, list[_Piece]], shapes: Mapping[str, Shape], names: NameMap
) -> Iterator[_Planned]:
    """Yield the target's tensors in the order of the network."""
    order = {name: number for number, name in enumerate(shapes)}
    places = [item for item in layout(shapes, names).items() if item[1].is_first]
    for name, place in sorted(
        places, key=lambda item: (order[item[1].ours[0]], item[1].expert or 0)
    ):
        kinds = {
            piece.tensor.kind
            for ours, start, count in runs(place, shapes)
            for piece, _, _ in _overlaps(pieces[ours], start, count)
        }
        if len(kinds) != 1:
            raise ModelError(
                f"{name} would join tensors of {' and '.join(sorted(kinds))}; use a form that stores them "
                f"separately, or a source with one type"
            )
        kind = kinds.pop()
        yield _Planned(name, place, kind, torch.Size(place.shape).numel() * DTYPES[kind].itemsize)


def _shards(planned: list[_Planned], shard_bytes: int) -> list[list[_Planned]]:
    shards: list[list[_Planned]] = [[]]
    size = 0
    for item in planned:
        if shards[-1] and size + item.size_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.size_bytes
    return shards


class _Gather:
    """Assembler of tensors from open files."""

    def __init__(
        self, pieces: Mapping[str, list[_Piece]], shapes: Mapping[str, Shape], stack: ExitStack
    ) -> None:
        self.pieces, self.shapes, self.stack = pieces, shapes, stack
        self.files: dict[Path, BinaryIO] = {}

    def tensor(self, planned: _Planned) -> Tensor:
        """Assemble one tensor of the target."""
        result = torch.empty(planned.place.shape, dtype=DTYPES[planned.kind])
        flat, done = result.view(-1), 0
        for ours, start, count in runs(planned.place, self.shapes):
            self._fill(ours, start, flat[done : done + count])
            done += count
        return result

    def parameter(self, name: str) -> Tensor:
        """Assemble one parameter of the network, in the type of its first piece."""
        kind = DTYPES[self.pieces[name][0].tensor.kind]
        result = torch.empty(self.shapes[name], dtype=kind)
        self._fill(name, 0, result.view(-1))
        return result

    def _fill(self, ours: str, start: int, target: Tensor) -> None:
        for piece, begin, end in _overlaps(self.pieces[ours], start, len(target)):
            path = piece.tensor.path
            if path not in self.files:
                self.files[path] = self.stack.enter_context(path.open("rb"))
            first = piece.first + begin - piece.start
            read(self.files[path], piece.tensor, first, target[begin - start : end - start])


def _write(
    folder: Path, shards: list[list[_Planned]], gather: _Gather, progress: Progress | None
) -> int:
    """Write the shards, and an index when there are several; return the bytes of all tensors."""
    total, done = sum(item.size_bytes for shard in shards for item in shard), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for item in shard:
            tensors[item.name] = gather.tensor(item)
            weight_map[item.name] = file
            done += item.size_bytes
            if progress is not None:
                progress(done, total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files that only the owner may read
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _copy_rest(source: Path, target: Path) -> None:
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, target / path.name)
