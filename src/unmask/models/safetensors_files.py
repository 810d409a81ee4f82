"""Safetensors files: the offsets of their tensors, and reads straight into a target tensor.

Nothing is mapped into memory: the pages of a mapped file count as the process's until it is closed, and
would be a second copy next to stacked, split or converted weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import ModelError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Supported dtypes of weights, by their names in a file."""
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
    """Return the safetensors files of a checkpoint folder. Raises ModelError when there are none."""
    index = folder / INDEX
    if index.exists():
        files = [folder / name for name in _shard_names(index)]
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise ModelError(
                f"{folder}: the index names shards that are missing: {', '.join(absent)}"
            )
        return files
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: only pickle weights found ({pickles[0]}); unpickling runs code, so unmask reads "
            f"safetensors only. Convert the checkpoint first, e.g. with safetensors.torch.save_file"
        )
    raise ModelError(f"{folder}: no {SINGLE} and no {INDEX}; give a folder with weights")


def _shard_names(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{index}: not valid JSON ({error})") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map from tensor names to files")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: weight_map must name a file for every tensor")
    return sorted(set(weight_map.values()))


def tensors_of(path: Path) -> list[TensorEntry]:
    """Return the tensors of one file in the order of their bytes. Raises ModelError."""
    try:
        with safe_open(path, framework="pt"):
            pass  # checks the whole header: sizes, overlaps, the file's length
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from None
    entries = []
    for name, item in header.items():
        if name == "__metadata__":
            continue
        begin, end = item["data_offsets"]
        shape = tuple(item["shape"])
        entries.append(
            TensorEntry(name, path, item["dtype"], shape, 8 + length + begin, end - begin)
        )
    return sorted(entries, key=lambda tensor: tensor.start)


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
