"""Make the checkpoints of `tests/fixtures` and `studies` from the small files that are tracked.

A file `NAME.xz` holds a safetensors file in the xz format, its tensors stored byte by byte (first all
lowest bytes, and so on), which compresses better. A file `drawn.json` says how the random weights of the
file `model.safetensors` beside it were drawn. What is there is left alone.

    python scripts/fixture_weights.py              # make all files that are missing
    python scripts/fixture_weights.py pack FILE    # write FILE.xz
"""

from __future__ import annotations

import json
import lzma
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "tests" / "fixtures", ROOT / "studies" / "cadllm" / "models")
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "BOOL": 1, "U8": 1}


def pack(source: Path) -> Path:
    """Write `source` beside itself as .xz and return the path."""
    data = source.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    body = np.frombuffer(data, np.uint8, offset=start)
    packed = data[:start] + _each_tensor(
        data[8:start], body, lambda part, size: part.reshape(-1, size).T
    )
    target = source.with_name(source.name + ".xz")
    _write(target, lzma.compress(packed, preset=9))
    return target


def unpack(source: Path) -> bytes:
    """Return the safetensors file that `source`, an .xz file, holds."""
    data = lzma.decompress(source.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    body = np.frombuffer(data, np.uint8, offset=start)
    return data[:start] + _each_tensor(
        data[8:start], body, lambda part, size: part.reshape(size, -1).T
    )


def _each_tensor(
    header: bytes, body: np.ndarray, change: Callable[[np.ndarray, int], np.ndarray]
) -> bytes:
    """Return the bytes of all tensors, each changed by `change(bytes, size of a value)`."""
    entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
    parts, end = [], 0
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        begin, following = entry["data_offsets"]
        if begin != end:
            raise ValueError(f"the file has a gap before byte {begin} of its tensors")
        parts.append(change(body[begin:following], SIZES[entry["dtype"]]).tobytes())
        end = following
    return b"".join(parts)


def draw(recipe: Path) -> bytes:
    """Return the safetensors file whose float32 weights `recipe`, a drawn.json, describes.

    One generator draws normal values for all tensors in the order of the recipe. A matrix is scaled by
    `gain / sqrt(columns)`, or by `scale`; a vector is `mean + scale * values`. `rows` scales single rows.
    """
    import torch
    from safetensors.torch import save

    facts = json.loads(recipe.read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(facts["seed"])
    tensors = {}
    for line in facts["tensors"]:
        kind, name = line.split(" ")
        how = facts["kinds"][kind]
        values = torch.randn(how["shape"], generator=generator)
        if "gain" in how:
            values = values * how["gain"] / math.sqrt(how["shape"][-1])
        else:
            values = how.get("mean", 0.0) + values * how["scale"]
        for row, factor in how.get("rows", {}).items():
            values[int(row)] *= factor
        tensors[name] = values
    return save(tensors, metadata={"format": "pt"})


def make(folders: tuple[Path, ...] = FOLDERS) -> list[Path]:
    """Write every file that is missing below `folders`, each at once, and return their paths."""
    made = []
    for folder in folders:
        for source in sorted((*folder.rglob("*.safetensors.xz"), *folder.rglob("drawn.json"))):
            is_packed = source.suffix == ".xz"
            target = source.with_suffix("") if is_packed else source.with_name("model.safetensors")
            if not target.exists():
                _write(target, unpack(source) if is_packed else draw(source))
                made.append(target)
    return made


def _write(target: Path, data: bytes) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(target)


def main(arguments: list[str]) -> None:
    """Run the command of the module's docstring."""
    if arguments and arguments[0] == "pack":
        path = Path(arguments[1])
        target = pack(path)
        print(f"{target}: {target.stat().st_size} of {path.stat().st_size} bytes")
    else:
        for path in make():
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
