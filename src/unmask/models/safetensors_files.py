"""Safetensors files: the offsets of their tensors, and reads straight into a target tensor.

Nothing is mapped into memory: the pages of a mapped file count as the process's until it is closed, and
would be a second copy next to stacked, split or converted weights.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import ModelError
from unmask.json_text import parse_json
from unmask.models.folder_files import is_pointer, listing, read_object, shortened, unfinished
from unmask.regular_files import open_regular

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NUMBERED = r"model-(\d+)-of-(\d+)\.safetensors"
OTHERS = ("*.gguf", "*.ggml", "*.npz", "*.h5", "*.msgpack", "*.onnx")
MAX_SHARDS = 9999
MAX_HEADER_BYTES = 32 << 20
MAX_HEADER_VALUES = 4_000_000
MAX_NAME, MAX_DIMENSIONS = 512, 8
"""Maximum number of characters of a tensor's name, and of its dimensions."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Supported dtypes of weights, by their names in a file."""
SAMPLE_BYTES = 1 << 12
"""Number of bytes of a tensor by which two sets of files are compared."""
CHUNK = 1 << 22
"""Number of elements that are converted or moved at a time."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; its bytes begin at `start`. `kind` is the file's name of its dtype."""

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def shard_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder. Raises ModelError when there are none.

    A whole file precedes an index beside it whose shards are not all there, or hold the same. Shards
    without an index are taken if their numbers are complete.
    """
    index, single = folder / INDEX, folder / SINGLE
    if single.exists():
        _check_leftover(index, single)
        return [single]
    files = [folder / name for name in _shard_names(index)] if index.exists() else _numbered(folder)
    absent = [path.name for path in files if not path.exists()]
    if absent:
        raise ModelError(
            f"{folder}: {len(absent)} of {len(files)} shards are missing: {listing(absent)}; download them"
            f"{unfinished(folder)}"
        )
    if files:
        return files
    raise _no_weights(folder)


class NoWeightsError(ModelError):
    """A checkpoint folder without any file of weights."""


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder}: only pickle weights found ({listing(pickles)}); unpickling runs code, so unmask "
            f"reads safetensors only. Convert the checkpoint first, e.g. with "
            f"safetensors.torch.save_file{unfinished(folder)}"
        )
    problem = f"{folder}: no {SINGLE} and no {INDEX}"
    named = sorted(path.name for path in folder.glob("*.safetensors"))
    if named:
        return ModelError(
            f"{problem}, but {listing(named)}; if that is the whole model, call it {SINGLE}"
            f"{unfinished(folder)}"
        )
    others = sorted(path.name for pattern in OTHERS for path in folder.glob(pattern))
    if others:
        return ModelError(
            f"{problem}, only {listing(others)}, which is not read; give the folder of the original "
            f"checkpoint{unfinished(folder)}"
        )
    kind = ModelError if unfinished(folder) else NoWeightsError
    return kind(f"{problem}; give a folder with weights{unfinished(folder)}")


def _check_leftover(index: Path, single: Path) -> None:
    """Raise ModelError for an index beside a whole file that names other weights, all of them present."""
    if not index.exists():
        return
    try:
        files = [index.parent / name for name in _shard_names(index)]
    except ModelError:
        return
    if single in files or not all(path.exists() for path in files):
        return
    if _samples([single]) != _samples(files):
        raise ModelError(
            f"{index.parent}: {SINGLE} and the files of {INDEX} hold different weights; remove those that "
            f"are not meant"
        )


def _samples(files: list[Path]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the type, the shape and the first bytes of every tensor of some files."""
    result = {}
    for path in files:
        with path.open("rb") as file:
            for tensor in tensors_of(path):
                file.seek(tensor.start)
                result[tensor.name] = (
                    tensor.kind,
                    tensor.shape,
                    file.read(min(tensor.size_bytes, SAMPLE_BYTES)),
                )
    return result


def is_equal(first: TensorEntry, second: TensorEntry) -> bool:
    """Return True if two stored tensors are the same, bit by bit."""
    if (first.kind, first.shape) != (second.kind, second.shape):
        return False
    with first.path.open("rb") as one, second.path.open("rb") as other:
        one.seek(first.start)
        other.seek(second.start)
        counts = (min(CHUNK, first.size_bytes - at) for at in range(0, first.size_bytes, CHUNK))
        return all(one.read(count) == other.read(count) for count in counts)


def is_zero(tensor: TensorEntry) -> bool:
    """Return True if every element of a stored tensor is 0."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        counts = (min(CHUNK, tensor.size_bytes - at) for at in range(0, tensor.size_bytes, CHUNK))
        return not any(file.read(count).strip(b"\0") for count in counts)


def _numbered(folder: Path) -> list[Path]:
    """Return all shards of the set whose number is in the shards' names; none without such names."""
    names = [path.name for path in folder.glob("model-*-of-*.safetensors")]
    matches = [match for name in names if (match := re.fullmatch(NUMBERED, name))]
    totals = {match[2] for match in matches}
    if len(totals) != 1:
        return []
    total = totals.pop()
    if int(total) > MAX_SHARDS:
        return []
    width = len(total)
    return [
        folder / f"model-{number:0{width}}-of-{total}.safetensors"
        for number in range(1, int(total) + 1)
    ]


def most_common_dtype(folder: Path) -> str:
    """Return the name of the dtype of most stored elements. Raises ModelError."""
    sizes: dict[str, int] = {}
    for path in shard_files(folder):
        for tensor in tensors_of(path):
            if tensor.kind in DTYPES:
                sizes[tensor.kind] = sizes.get(tensor.kind, 0) + prod(tensor.shape)
    if not sizes:
        raise ModelError(f"{folder}: no tensor of {', '.join(DTYPES)}; dtype=auto needs one")
    return str(DTYPES[max(sizes, key=lambda kind: sizes[kind])]).removeprefix("torch.")


def _shard_names(index: Path) -> list[str]:
    """Return the names of an index's files, all of them in its own folder. Raises ModelError."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(
            f"{index}: has no weight_map from tensor names to files; download it again"
        )
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str):
            raise ModelError(
                f"{index}: weight_map must name a file for every tensor; download it again"
            )
        names.add(name)
    for name in sorted(names):
        if not re.fullmatch(r"[^/\\:\x00-\x1f]{1,240}\.safetensors", name):
            raise ModelError(
                f"{index}: weight_map has {shortened(repr(name))}; it must be the name of a safetensors "
                f"file in the same folder; download it again"
            )
    if len(names) > MAX_SHARDS:
        raise ModelError(
            f"{index}: weight_map names {len(names)} files; at most {MAX_SHARDS} are read; download it "
            f"again"
        )
    return sorted(names)


def tensors_of(path: Path) -> list[TensorEntry]:
    """Return the tensors of one file in the order of their bytes. Raises ModelError."""
    try:
        header, start = _header(path)
        with safe_open(path, framework="pt"):
            pass  # checks offsets, overlaps, and sizes by shape and dtype up to the file's end
        entries = [
            _entry(name, item, path, start)
            for name, item in header.items()
            if name != "__metadata__"
        ]
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{path}: not a readable safetensors file ({shortened(reason)}); {_remedy(path)}"
        ) from None
    return sorted(entries, key=lambda tensor: tensor.start)


def _header(path: Path) -> tuple[dict[str, object], int]:
    """Return a file's parsed header and the position behind it. Raises OSError and ValueError."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        rest = os.fstat(file.fileno()).st_size - 8
        if length > min(rest, MAX_HEADER_BYTES):
            raise ValueError(
                f"its header has {length} bytes, at most {max(0, min(rest, MAX_HEADER_BYTES))} are possible"
            )
        header = parse_json(file.read(length), MAX_HEADER_VALUES)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


def _entry(name: str, item: object, path: Path, start: int) -> TensorEntry:
    """Return a tensor of a header that safetensors has checked. Raises ValueError for absurd ones."""
    if not isinstance(item, dict):
        raise ValueError(f"{shortened(name)!r} is no tensor")
    kind, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(kind, str) or not _are_whole(shape) or not _are_whole(offsets):
        raise ValueError(f"{shortened(name)!r} needs dtype, shape and data_offsets")
    if len(name) > MAX_NAME or len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise ValueError(
            f"{shortened(name)!r} has {len(name)} characters and {len(shape)} dimensions; at most "
            f"{MAX_NAME} and {MAX_DIMENSIONS} are allowed"
        )
    begin, end = offsets
    return TensorEntry(name, path, kind, tuple(shape), start + begin, end - begin)


def _are_whole(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(each) is int and each >= 0 for each in values)


def _remedy(path: Path) -> str:
    if is_pointer(path):
        return "it is only a Git LFS pointer; run `git lfs pull` in its folder"
    return f"it is damaged or half downloaded; download it again{unfinished(path.parent)}"


def read(file: BinaryIO, tensor: TensorEntry, first: int, target: Tensor) -> None:
    """Fill the flat `target`, of any dtype and device, with a tensor's elements from `first` on."""
    kind = DTYPES[tensor.kind]
    file.seek(tensor.start + first * kind.itemsize)
    if target.dtype == kind and target.device.type == "cpu":
        _fill(file, target, tensor)
        return
    buffer = torch.empty(min(CHUNK, len(target)), dtype=kind)
    for at in range(0, len(target), CHUNK):
        part = target[at : at + CHUNK]
        piece = buffer[: len(part)]
        _fill(file, piece, tensor)
        part.copy_(piece)


def read_columns(
    file: BinaryIO, tensor: TensorEntry, first: int, target: Tensor, place: tuple[int, int]
) -> None:
    """Fill `target` `(rows, columns)` from stored rows that begin at the element `first`.

    `place`: the width of a stored row, and the first column to read.
    """
    width, left = place
    most = max(1, CHUNK // width)
    buffer = torch.empty(min(most, len(target)) * width, dtype=DTYPES[tensor.kind])
    for at in range(0, len(target), most):
        rows = target[at : at + most]
        piece = buffer[: len(rows) * width]
        read(file, tensor, first + at * width, piece)
        rows.copy_(piece.view(-1, width)[:, left : left + target.shape[1]])


def _fill(file: BinaryIO, target: Tensor, tensor: TensorEntry) -> None:
    rest = target.view(torch.uint8).numpy().data
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ModelError(f"{tensor.path}: ends inside {tensor.name}; download the file again")
        rest = rest[count:]
