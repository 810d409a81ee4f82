"""`unmask models` and `unmask convert`: the bundled models, and conversion of checkpoints."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.table import Table

from unmask.errors import ModelError
from unmask.models import BUNDLED, convert_checkpoint, read_spec
from unmask.view.progress import LoadingView

ABOUT = {"demo": "word problems, 4x4 Sudoku, blanks in simple sentences"}
"""Tasks of each bundled model."""


class ModelEntry(TypedDict):
    """A bundled model; sizes are None if its weights are not installed."""

    name: str
    description: str
    architecture: str | None
    context: int | None
    parameters: int | None
    size_bytes: int | None
    folder: str


def listing() -> list[ModelEntry]:
    """Return the bundled models."""
    entries = []
    for name, folder in BUNDLED.items():
        weights = sorted(folder.glob("*.safetensors"))
        entry: ModelEntry = {
            "name": name,
            "description": ABOUT.get(name, ""),
            "architecture": None,
            "context": None,
            "parameters": sum(map(_parameters, weights)) if weights else None,
            "size_bytes": sum(path.stat().st_size for path in weights) if weights else None,
            "folder": str(folder),
        }
        if (folder / "config.json").exists():
            spec = read_spec(folder)
            sizes = f"{spec.num_layers} layers of width {spec.d_model}"
            entry["architecture"] = f"{spec.family}, {sizes}"
            entry["context"] = spec.max_length
        entries.append(entry)
    return entries


def _parameters(path: Path) -> int:
    """Return the number of elements in a safetensors file, from its header."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(item["shape"]) for key, item in header.items() if key[:2] != "__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from None


def show(as_json: bool) -> None:
    """Print the list."""
    entries = listing()
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        for entry in entries:
            fields = (entry["name"], entry["description"], _size(entry), entry["folder"])
            print("\t".join(fields))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "description", "size", "folder"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        about = entry["description"]
        if entry["architecture"]:
            about += f"\n{entry['architecture']}, context {entry['context']}"
        table.add_row(entry["name"], about, _size(entry), entry["folder"])
    console.print(table)


def _size(entry: ModelEntry) -> str:
    if entry["parameters"] is None or entry["size_bytes"] is None:
        return "weights missing"
    return f"{entry['parameters'] / 1e6:.1f} M parameters, {entry['size_bytes'] / 1e6:.1f} MB"


def run(source: str, target: str, form: str) -> None:
    """Convert a checkpoint; report the written files on standard error."""
    with LoadingView(source, verb="converting") as progress:
        done = convert_checkpoint(source, target, form, progress)
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    print(
        f"{target}: {done.num_tensors} tensors, {done.size_bytes / 1e6:.1f} MB, {files}",
        file=sys.stderr,
    )
