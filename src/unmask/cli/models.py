"""`unmask models`, `unmask pull` and `unmask convert`: models on this machine, and their conversion."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.fit import gigabytes
from unmask.errors import ConfigError, ModelError
from unmask.models import BUNDLED, convert_checkpoint, read_spec
from unmask.view.progress import LoadingView

ABOUT = {"demo": "word problems, 4x4 Sudoku, blanks in simple sentences"}
"""Tasks of each bundled model."""


class ModelEntry(TypedDict):
    """A model; figures are None where its config (sizes: its weights) is not on this machine.

    `origin`: bundled, cached (in the local hub cache) or preset (known, not here). `memory_bytes`: of a
    decode of one row of 256 + 128 positions, in the default dtype and place.
    """

    name: str
    origin: str
    description: str
    architecture: str | None
    context: int | None
    parameters: int | None
    size_bytes: int | None
    memory_bytes: int | None
    fits: bool | None
    folder: str | None


def listing() -> list[ModelEntry]:
    """Return the bundled models, those in the hub's cache, and the presets that are not there."""
    entries = [_entry(name, "bundled", ABOUT.get(name, ""), BUNDLED[name]) for name in BUNDLED]
    presets = preset_ids()
    cached = cached_models()
    names = {id_: name for name, id_ in presets.items()}
    for id_, folder in cached.items():
        about = f"preset {names[id_]}" if id_ in names else ""
        entries.append(_entry(id_, "cached", about, folder))
    for name, id_ in presets.items():
        if id_ not in cached:
            entries.append(_entry(id_, "preset", f"preset {name}; unmask pull {name}", None))
    return entries


def preset_ids() -> dict[str, str]:
    """Return the hub ids of the model presets, by name."""
    from unmask.config.presets_index import Library

    found = {}
    for (group, name), preset in sorted(Library().presets.items()):
        path = preset.values.get("model.path")
        if group == "model" and isinstance(path, str) and path.count("/") == 1:
            found[name] = path
    return found


def cached_models() -> dict[str, Path]:
    """Return the folders of the masked diffusion models in the local hub cache, by hub id."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from unmask.models.folders import snapshot

    found = {}
    for cache in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        try:
            folder = snapshot(cache)
            read_spec(folder)
        except (ModelError, OSError):
            continue  # of another kind, or not complete
        found[cache.name.removeprefix("models--").replace("--", "/", 1)] = folder
    return found


def _entry(name: str, origin: str, description: str, folder: Path | None) -> ModelEntry:
    weights = sorted(folder.glob("*.safetensors")) if folder is not None else []
    entry: ModelEntry = {
        "name": name,
        "origin": origin,
        "description": description,
        "architecture": None,
        "context": None,
        "parameters": sum(map(_parameters, weights)) if weights else None,
        "size_bytes": sum(path.stat().st_size for path in weights) if weights else None,
        "memory_bytes": None,
        "fits": None,
        "folder": None if folder is None else str(folder),
    }
    if folder is not None and (folder / "config.json").exists():
        from unmask.cli.fit import sizes

        spec = read_spec(folder)
        count, need, fits = sizes(spec)
        entry["architecture"] = f"{spec.family}, {spec.num_layers} layers of width {spec.d_model}"
        entry["context"] = spec.max_length
        entry["parameters"] = entry["parameters"] or count
        entry["memory_bytes"], entry["fits"] = need.total, fits
    return entry


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
            fields = (
                entry["name"],
                entry["description"],
                _size(entry),
                _memory(entry),
                entry["folder"] or "",
            )
            print("\t".join(fields))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "description", "size", "memory", "folder"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        about = entry["description"]
        if entry["architecture"]:
            about += f"\n{entry['architecture']}, context {entry['context']}"
        texts = (entry["name"], about, _size(entry), _memory(entry), entry["folder"] or "")
        table.add_row(*map(Text, texts))
    console.print(table)


def _size(entry: ModelEntry) -> str:
    if entry["origin"] == "preset":
        return "not here"
    if entry["parameters"] is None or entry["size_bytes"] is None:
        return "weights missing"
    return f"{entry['parameters'] / 1e6:.1f} M parameters, {entry['size_bytes'] / 1e6:.1f} MB"


def _memory(entry: ModelEntry) -> str:
    if entry["memory_bytes"] is None:
        return "unknown"
    fits = {True: "fits", False: "does not fit", None: "unknown room"}[entry["fits"]]
    return f"{gigabytes(entry['memory_bytes'])}, {fits}"


def pull(model: str, revision: str | None) -> None:
    """Download a model, or a preset's; print its folder. Raises ModelError and ConfigError."""
    from unmask.models import with_revision
    from unmask.models.folders import resolve_model

    name, at, own = model.partition("@")
    model = preset_ids().get(name, name) + at + own
    if Path(model).expanduser().is_dir() or model in BUNDLED:
        raise ConfigError(
            f"model {model!r} is on this machine already; pull takes a hub id or preset"
        )
    folder = resolve_model(with_revision(model, revision))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(folder)
    print(f"{model}: {gigabytes(size)}", file=sys.stderr)


def run(source: str, target: str, form: str) -> None:
    """Convert a checkpoint; report the written files on standard error."""
    with LoadingView(source, verb="converting") as progress:
        done = convert_checkpoint(source, target, form, progress)
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    print(
        f"{target}: {done.num_tensors} tensors, {done.size_bytes / 1e6:.1f} MB, {files}",
        file=sys.stderr,
    )
