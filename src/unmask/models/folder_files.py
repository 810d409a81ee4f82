"""Checks of a checkpoint folder's files: kinds, places and sizes, JSON, adapters, unfinished downloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unmask.errors import ModelError
from unmask.json_text import parse_json
from unmask.regular_files import read_bounded, special_kind

POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024
"""Maximum size of a Git LFS pointer, from its specification."""
TEMPLATES = "additional_chat_templates/*.jinja"
READ = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab*", "tokenizer*", TEMPLATES)
"""Patterns of the files that loading may read."""
SMALL, LARGE, WHOLE = 16 << 20, 64 << 20, 128 << 20
MAX_BYTES = {
    "adapter_config.json": SMALL,
    "added_tokens.json": SMALL,
    "chat_template.jinja": 1 << 20,
    "chat_template.json": SMALL,
    "config.json": SMALL,
    "generation_config.json": SMALL,
    "merges.txt": LARGE,
    "model.safetensors.index.json": LARGE,
    "special_tokens_map.json": SMALL,
    "tokenizer.json": WHOLE,
    "tokenizer_config.json": SMALL,
    "vocab.json": LARGE,
}
"""Maximum sizes of the files that are read, several times those of any release."""
MAX_LARGE_VALUES = 8_000_000
"""Maximum number of JSON values in one of them that may be larger than 16 MiB."""
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
    """Raise ModelError for a folder that loading must not read.

    That is one with Git LFS pointers, an adapter for a model, or files that are too large, not regular, or
    links that are broken or lead out of the folder; those to the blobs of a hub cache and, of weights, to
    safetensors files elsewhere are read.
    """
    paths = sorted({path for pattern in READ for path in folder.glob(pattern)})
    _refuse(
        folder,
        paths,
        lambda path: is_pointer(path),
        "only a Git LFS pointer, not the file itself; run `git lfs install` and `git lfs pull` in this "
        "folder, or download it with `hf download`",
    )
    _refuse(
        folder,
        paths,
        lambda path: path.is_symlink() and not path.exists(),
        f"a link to a file that is not there; download the model again{unfinished(folder)}",
    )
    home = folder.resolve()
    _refuse(
        folder,
        paths,
        lambda path: path.is_symlink() and not _is_allowed(path.resolve(), home),
        "a link to a file outside of this folder, which is not read; if you trust it, put the file itself "
        "here (cp -L)",
    )
    for path in paths:
        status = path.stat()
        kind, most = special_kind(status.st_mode), MAX_BYTES.get(path.name)
        is_read = most is not None or path.suffix in (".safetensors", ".jinja")
        if kind is not None and (is_read or not path.is_dir()):
            raise ModelError(
                f"{folder}: {shortened(path.name)} is {kind}, not a file; remove it, and download the "
                f"model again"
            )
        most = 1 << 20 if path.suffix == ".jinja" else most
        if most is not None and kind is None and status.st_size > most:
            raise _too_large(path, status.st_size, most)
    if (folder / ADAPTER).exists():
        raise _adapter(folder)


def _refuse(
    folder: Path, paths: Sequence[Path], is_bad: Callable[[Path], bool], problem: str
) -> None:
    names = [path.name for path in paths if is_bad(path)]
    if names:
        raise ModelError(f"{folder}: {listing(names)}: {problem}")


def _is_allowed(target: Path, folder: Path) -> bool:
    """Return True if a link's target is in the resolved folder, a blob of a hub cache, or weights.

    Weights are often stored elsewhere, and what is no safetensors file shows in its header; a text, such as
    a chat template, would pass the content of any file on.
    """
    if target.is_relative_to(folder) or target.suffix == ".safetensors":
        return True
    blobs = target.parent
    is_own = folder.parent.name == "snapshots" and blobs.parent == folder.parent.parent
    return blobs.name == "blobs" and (is_own or blobs.parent.name.startswith("models--"))


def _too_large(path: Path, size: int, most: int) -> ModelError:
    return ModelError(
        f"{path}: {size} bytes, and at most {most} are read of such a file; it is damaged or no file of a "
        f"model: download it again"
    )


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
            f"{found}, and a model is beside it, merged or not. Delete {ADAPTER} and "
            f"adapter_model.* if the model has it merged already; otherwise merge it first, with peft's "
            f"merge_and_unload() and save_pretrained(), or move it and give the model with --lora FOLDER"
        )
    return ModelError(
        f"{found}, not a whole model. Give its base model, and this folder with --lora (lora= in Python); "
        f"or merge it into its base model first, with peft's merge_and_unload() and save_pretrained(), and "
        f"give the new folder"
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
    """Return the JSON object of a file, bounded in size, depth and number of values. Raises ModelError."""
    if is_pointer(path):
        raise ModelError(
            f"{path}: only a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )
    most = MAX_BYTES.get(path.name, SMALL)
    try:
        data = read_bounded(path, most)
        value = parse_json(data) if most <= SMALL else parse_json(data, MAX_LARGE_VALUES)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}); download it again"
        ) from None
    except (ValueError, MemoryError) as error:
        raise ModelError(
            f"{path}: not valid JSON ({shortened(str(error))}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object; download it again")
    return value
