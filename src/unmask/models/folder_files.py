"""Checks of a checkpoint folder's small files: Git LFS pointers, JSON, adapters, unfinished downloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unmask.errors import ModelError

POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024
"""Maximum size of a Git LFS pointer, from its specification."""
READ = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab*", "tokenizer*")
"""Patterns of the files that loading may read."""
PARTIAL = ("*.incomplete", "*.aria2", "*.crdownload", "*.part", "*.partial")
"""Patterns of files that a download in progress leaves behind."""
ADAPTER = "adapter_config.json"
MAX_SHOWN = 4
MAX_NAME = 140


def listing(names: Sequence[str], most: int = MAX_SHOWN) -> str:
    """Return the first names and the number of the others; long names are cut."""
    shown = ", ".join(shortened(name) for name in names[:most])
    rest = len(names) - most
    return f"{shown} and {rest} more" if rest > 0 else shown


def shortened(text: str, most: int = MAX_NAME) -> str:
    """Return a text of at most about `most` characters, cut in its middle."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def check_folder(folder: Path) -> None:
    """Raise ModelError for a folder with Git LFS pointers, broken links, or an adapter for a model."""
    pointers = sorted(
        {path.name for pattern in READ for path in folder.glob(pattern) if is_pointer(path)}
    )
    if pointers:
        raise ModelError(
            f"{folder}: {listing(pointers)}: only a Git LFS pointer, not the file itself; run `git lfs "
            f"install` and `git lfs pull` in this folder, or download it with `hf download`"
        )
    dangling = sorted(
        {
            path.name
            for pattern in READ
            for path in folder.glob(pattern)
            if path.is_symlink() and not path.exists()
        }
    )
    if dangling:
        raise ModelError(
            f"{folder}: {listing(dangling)}: a link to a file that is not there; download the model again"
            f"{unfinished(folder)}"
        )
    if (folder / ADAPTER).exists():
        raise _adapter(folder)


def is_pointer(path: Path) -> bool:
    """Return True for the text that Git puts in place of a large file when LFS is not installed."""
    try:
        if not path.is_file() or path.stat().st_size > POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _adapter(folder: Path) -> ModelError:
    config = read_object(folder / ADAPTER)
    kind = shortened(str(config.get("peft_type") or "PEFT"))
    base = config.get("base_model_name_or_path")
    of = f" for the base model {shortened(str(base))!r}" if base else ""
    found = f"{folder}: {ADAPTER} says that this is a {kind} adapter{of}"
    if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")):
        return ModelError(
            f"{found}, and a model is beside it; adapters are not applied. Delete {ADAPTER} and "
            f"adapter_model.* if the model has it merged already; otherwise merge it first, with peft's "
            f"merge_and_unload() and save_pretrained()"
        )
    return ModelError(
        f"{found}, not a whole model; adapters are not applied. Merge it into its base model first, with "
        f"peft's merge_and_unload() and save_pretrained(), and give the new folder"
    )


def partial_files(folder: Path) -> list[str]:
    """Return the names of the files that an unfinished download has left, also in the hub's own folders."""
    places = [
        folder,
        folder / ".cache" / "huggingface" / "download",
        folder.parent.parent / "blobs",
    ]
    if folder.parent.name != "snapshots":
        del places[-1]
    return sorted(path.name for place in places for each in PARTIAL for path in place.glob(each))


def unfinished(folder: Path) -> str:
    """Return a sentence on an unfinished download of the folder; empty if there is none."""
    names = partial_files(folder)
    if not names:
        return ""
    return f"; a download is unfinished ({listing(names, 2)}): run it again to its end"


def read_object(path: Path) -> dict[str, object]:
    """Return the JSON object of a file. Raises ModelError."""
    if is_pointer(path):
        raise ModelError(
            f"{path}: only a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(
            f"{path}: not valid JSON ({shortened(str(error))}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object; download it again")
    return value
