"""Loading and saving of weights, strictly: every stored name and shape must be accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from unmask.errors import ModelError
from unmask.models.folder_files import read_object
from unmask.models.registry import find_family
from unmask.models.safetensors_files import (
    CHUNK,
    DTYPES,
    TensorEntry,
    is_equal,
    read,
    read_columns,
    shard_files,
    tensors_of,
)
from unmask.models.spec import ModelSpec
from unmask.models.stored_names import changes_nothing, family_name, likely_cause, problems_text
from unmask.models.transformer import Transformer
from unmask.models.weight_names import NameMap, Shape, StoredName, checkpoint_name, layout, runs

TWICE, MISSHAPEN = "stored twice", "misshapen"
ILL_TYPED = "ill-typed"
UNMAPPED, MISSING = "unmapped (no such parameter in this family)", "missing"
PROBLEMS = (TWICE, MISSHAPEN, ILL_TYPED, UNMAPPED, MISSING)
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and their total, after each tensor."""


def load_weights(
    model: Transformer,
    folder: Path,
    names: NameMap,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Fill a model that was built on the meta device.

    Elements are read from the file into their parameter, with buffers of a few megabytes. One of several
    ranks reads only its part, but complete rows. Raises ModelError like `fit`, before any weight is read.
    """
    shapes = shapes_of(model)
    whole = shapes if model.ranks.size == 1 else _whole_shapes(model)
    fitting = fit(folder, whole, names, model.spec.tie_embeddings)
    state = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    total = sum(tensor.size_bytes for tensor, _ in fitting.pairs)
    done = 0
    for path, pairs in groupby(fitting.pairs, key=lambda pair: pair[0].path):
        with path.open("rb") as file:
            for tensor, place in pairs:
                first = 0
                for ours, start, count in runs(place, whole):
                    if ours in state:
                        part = ShardPart(whole[ours], state[ours], model.ranks.rank)
                        part.read(file, tensor, first, start, count)
                    first += count
                done += tensor.size_bytes
                if progress is not None:
                    progress(done, total)
    if fitting.head is not None:
        check_tied(folder, fitting.head, state["embed.weight"])
    model.load_state_dict(state, assign=True)


def shapes_of(model: Transformer) -> dict[str, Shape]:
    """Return the shape of every parameter."""
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def _whole_shapes(model: Transformer) -> dict[str, Shape]:
    """Return the shapes of the parameters of the whole model, of which this is one rank's part."""
    with torch.device("meta"):
        return shapes_of(Transformer(model.spec))


@dataclass(frozen=True, slots=True)
class ShardPart:
    """One rank's part of a parameter of shape `whole`: all of it, or an equal share of one dimension."""

    whole: Shape
    part: Tensor
    rank: int

    def read(self, file: BinaryIO, tensor: TensorEntry, first: int, start: int, count: int) -> None:
        """Read the parameter's elements `start .. start + count`, stored in a tensor from `first` on."""
        flat, own = self.part.view(-1), tuple(self.part.shape)
        if own == self.whole:
            read(file, tensor, first, flat[start : start + count])
            return
        dim = next(i for i, (a, b) in enumerate(zip(own, self.whole, strict=True)) if a != b)
        if dim == len(own) - 1:
            width, share = self.whole[dim], own[dim]
            rows = self.part.view(-1, share)[start // width : (start + count) // width]
            read_columns(file, tensor, first, rows, (width, self.rank * share))
            return
        size, share = prod(self.whole[dim:]), prod(own[dim:])
        for outer in range(start // size, -(-(start + count) // size)):
            part_start = outer * size + self.rank * share
            begin, end = max(start, part_start), min(start + count, part_start + share)
            if begin < end:
                at = outer * share + begin - part_start
                read(file, tensor, first + begin - start, flat[at : at + end - begin])


@dataclass(frozen=True, slots=True)
class Fit:
    """A checkpoint's tensors with their parameters, file by file.

    `head`: a stored copy of a tied head; `passed`: names of tensors that change nothing.
    """

    pairs: list[tuple[TensorEntry, StoredName]]
    head: TensorEntry | None
    passed: tuple[str, ...] = ()


def passed_over(folder: Path, spec: ModelSpec) -> tuple[str, ...]:
    """Return the names of stored tensors that loading passes over. Raises ModelError as loading does."""
    with torch.device("meta"):
        shapes = shapes_of(Transformer(spec))
    family = find_family(read_object(folder / "config.json"), folder)
    return fit(folder, shapes, family.names, spec.tie_embeddings).passed


@dataclass(frozen=True, slots=True)
class _Stored:
    """A checkpoint's tensors by the family's names, and the names of those that change nothing."""

    named: dict[str, TensorEntry]
    passed: list[str]


def fit(folder: Path, shapes: Mapping[str, Shape], names: NameMap, is_tied: bool) -> Fit:
    """Match every stored tensor with its parameters, from the files' headers.

    Tensors that change nothing are passed over, and the prefixes of wrappers left out. Raises ModelError
    with every kind of problem (tensors that are unmapped, missing, misshapen, ill-typed, or stored twice
    and different), their number, the first names, and the likely cause.
    """
    places = layout(shapes, names)
    problems: dict[str, list[str]] = {kind: [] for kind in PROBLEMS}
    head_name = checkpoint_name("lm_head.weight", names)
    stored = _stored(folder, places.keys() | ({head_name} if is_tied else set()), problems)
    head = stored.named.pop(head_name, None) if is_tied else None
    experts: dict[str, set[int | None]] = {name: set() for name in shapes}
    pairs = []
    for name, tensor in stored.named.items():
        place = places[name]
        if any(_is_stored(experts[ours], place.expert) for ours in place.ours):
            problems[TWICE].append(tensor.name)
            continue
        for ours in place.ours:
            experts[ours].add(place.expert)
        _check(tensor, place.shape, problems)
        pairs.append((tensor, place))
    if head is not None:
        _check(head, shapes["embed.weight"], problems)
        if not experts["embed.weight"]:  # the other one of the two was saved
            experts["embed.weight"].add(None)
            pairs.append((head, places[checkpoint_name("embed.weight", names)]))
            head = None
    problems[MISSING] = [
        name
        for name, place in places.items()
        if place.is_first and any(not {None, place.expert} & experts[ours] for ours in place.ours)
    ]
    if any(problems.values()):
        num_layers = 1 + max(
            (int(name.split(".")[1]) for name in shapes if name[:7] == "layers."), default=-1
        )
        cause = likely_cause(problems[UNMAPPED], problems[MISSING], head_name, num_layers)
        if any(tensor.kind.startswith("F8_") for tensor in stored.named.values()):
            cause += "; fp8 weights are quantized: give the checkpoint before quantization"
        raise misfit(folder, problems_text(problems) + cause)
    return Fit(pairs, head, tuple(stored.passed))


def _stored(folder: Path, known: set[str], problems: dict[str, list[str]]) -> _Stored:
    """Return the tensors of all files; those without a name and those stored twice become `problems`."""
    result = _Stored({}, [])
    for tensor in (entry for path in shard_files(folder) for entry in tensors_of(path)):
        name = family_name(tensor.name, known)
        if name is None and changes_nothing(tensor):
            result.passed.append(tensor.name)
        elif name is None:
            problems[UNMAPPED].append(tensor.name)
        elif name not in result.named:
            result.named[name] = tensor
        elif not is_equal(result.named[name], tensor):
            problems[TWICE].append(tensor.name)
    return result


def misfit(folder: Path, problem: str) -> ModelError:
    """Build the error for weights that do not fit the config."""
    return ModelError(f"{folder}: the weights do not fit the config: {problem}")


def _is_stored(experts: set[int | None], expert: int | None) -> bool:
    return bool(experts) and (expert is None or None in experts or expert in experts)


def _check(tensor: TensorEntry, shape: Shape, problems: dict[str, list[str]]) -> None:
    if tensor.shape != shape:
        problems[MISSHAPEN].append(f"{tensor.name} is {tensor.shape}, the config requires {shape}")
    elif tensor.kind not in DTYPES:
        problems[ILL_TYPED].append(f"{tensor.name} is {tensor.kind}, not {', '.join(DTYPES)}")


def check_tied(folder: Path, head: TensorEntry, embed: Tensor) -> None:
    """Raise ModelError unless a stored head equals the embedding that the config ties it to."""
    flat = embed.view(-1)
    with head.path.open("rb") as file:
        for at in range(0, len(flat), CHUNK):
            expected = flat[at : at + CHUNK]
            stored = torch.empty_like(expected)
            read(file, head, at, stored)
            if not torch.equal(stored, expected):
                raise misfit(
                    folder,
                    f"{head.name} differs from the embedding although the config ties them; if the head "
                    f"is right, set tie_word_embeddings (LLaDA: weight_tying) to false in config.json",
                )


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor that a folder stores in a plain type, by its name there."""
    entries = (entry for path in shard_files(folder) for entry in tensors_of(path))
    return {entry.name: DTYPES[entry.kind] for entry in entries if entry.kind in DTYPES}


def save_weights(
    model: Transformer,
    path: Path,
    names: NameMap,
    dtype: torch.dtype,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write one safetensors file with the family's names and layout; `dtypes` of single tensors by name."""
    from safetensors.torch import save_file

    ours = {name: value.detach() for name, value in model.named_parameters()}
    tensors = {}
    for name, place in layout({key: tuple(v.shape) for key, v in ours.items()}, names).items():
        if place.is_first:
            parts = [
                ours[key] if place.expert is None else ours[key][place.expert] for key in place.ours
            ]
            kind = (dtypes or {}).get(name, dtype)
            tensors[name] = torch.cat(parts, dim=place.row_dim).to(kind).cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only the owner may read
