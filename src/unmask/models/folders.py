"""The folder of a model: a bundled name, a folder of one of several kinds, or a revision of a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from unmask.errors import ConfigError, ContradictionError, ModelError, unknown_name
from unmask.models.folder_files import check_folder, listing, shortened, unfinished
from unmask.regular_files import open_regular

BUNDLED = {"demo": Path(__file__).parent.parent / "demo" / "model"}
_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt")
OTHER_WEIGHTS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz")
MAX_REF_BYTES = 4096
SHORTEST_COMMIT = 7
"""Minimum number of characters of an abbreviated commit."""


def resolve_model(model: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the folder of a bundled name, a folder, or a hub id (downloaded; safetensors and JSON only).

    A hub id may end in `@revision`: a branch, a tag or a commit, as may be given in `revision`. The folder
    of a repository in the hub's cache stands for its snapshot. `weights=False` leaves safetensors out of a
    download. Raises ModelError when there is no such model, and ConfigError for a revision of a model that
    has none, or two of them.
    """
    text = str(model)
    if revision is not None and not isinstance(revision, str):
        raise ConfigError(f"revision={revision!r} must be a text: a branch, a tag or a commit")
    if revision == "":
        raise ConfigError("revision='' is empty; give a branch, a tag or a commit, or leave it out")
    path = _path(text)
    if "@" in text and (path is None or not path.exists()):
        text = with_revision(text, revision)
        text, _, revision = text.rpartition("@")
        path = _path(text) if text else None
    if text in BUNDLED:
        _refuse_revision(text, revision)
        if not (BUNDLED[text] / "config.json").exists():
            raise ModelError(f"the bundled model {text!r} is not installed; reinstall unmask")
        return BUNDLED[text]
    if path is not None and path.is_dir():
        try:
            return _located(path, revision)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    if path is not None and path.exists():
        raise _is_file(path)
    if text.count("/") != 1 or text.startswith((".", "~", "/")):
        raise unknown_model(text)
    return _download(text, revision, weights)


def with_revision(model: str, revision: str | None) -> str:
    """Return `model@revision`, the one text for both. Raises ConfigError for an empty or a second one."""
    name, at, own = model.rpartition("@")
    if revision == "" or (at and not own):
        raise ConfigError(f"model {shortened(model)!r}: the revision is empty; give one, or none")
    if revision is None or (at and own == revision):
        return model
    if at and name and not Path(model).expanduser().exists():
        raise ContradictionError("revision", f"model={model}", f"revision={revision}")
    return f"{model}@{revision}"


def unknown_model(text: str) -> ModelError:
    """Build the error for a name that is neither bundled nor a folder nor a hub id."""
    hint = str(unknown_name("model", shortened(text), BUNDLED))
    return ModelError(f"{hint}; or give a folder with config.json, or a hub id like owner/name")


def _path(text: str) -> Path | None:
    """Return the path of a text that can be one."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, the home of nobody
        return None
    return path


def _refuse_revision(text: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"revision={shortened(revision)!r} has no effect on {shortened(text)!r}: only hub ids have "
            f"revisions; leave it out"
        )


def _is_file(path: Path) -> ModelError:
    """Build the error for a file that is given instead of its folder."""
    if path.suffix.lower() in OTHER_WEIGHTS:
        return ModelError(
            f"model {str(path)!r} is a file, and {path.suffix} is not read; give the folder of the "
            f"original checkpoint, with config.json and safetensors"
        )
    folder = path.absolute().parent
    near = f": {str(folder)!r}" if (folder / "config.json").exists() else ""
    return ModelError(
        f"model {str(path)!r} is a file; give the folder that contains config.json{near}"
    )


def _located(path: Path, revision: str | None) -> Path:
    """Return the checkpoint folder that `path` stands for. Raises ModelError if it is none."""
    has_config = (path / "config.json").is_file()
    cache = path.parent if path.name == "snapshots" else path
    if not has_config and (cache / "snapshots").is_dir():
        folder = snapshot(cache, revision)
    else:
        _refuse_revision(str(path), revision)
        folder = path
    check_folder(folder)
    if not (folder / "config.json").is_file():
        raise _without_config(folder)
    return folder


def snapshot(cache: Path, revision: str | None = None) -> Path:
    """Return a snapshot of a repository in the hub's cache; `revision` None: main, or the only one.

    A commit may be abbreviated to 7 characters. Raises ModelError with the revisions that are there.
    """
    commits = sorted(path.name for path in (cache / "snapshots").iterdir() if path.is_dir())
    commit = _commit(cache, revision or "main") or revision
    if commit is None and len(commits) == 1:
        return cache / "snapshots" / commits[0]
    shortest = commit is not None and len(commit) >= SHORTEST_COMMIT
    matches = [
        each for each in commits if commit == each or (shortest and each.startswith(str(commit)))
    ]
    if len(matches) == 1:
        return cache / "snapshots" / matches[0]
    if not commits:
        raise ModelError(f"{cache}: its snapshots/ is empty; download the model{unfinished(cache)}")
    if revision is not None:
        problem = f"no revision {shortened(revision)!r} in this hub cache"
    elif commit is not None:
        problem = (
            f"refs/main of this hub cache is {shortened(commit)}, which is not in its snapshots/"
        )
    else:
        problem = "a hub cache with several snapshots and no refs/main"
    raise ModelError(
        f"{cache}: {problem}; it has {listing(revisions(cache), 8)}; give one as revision, or its folder "
        f"in {cache.name}/snapshots"
    )


def revisions(cache: Path) -> list[str]:
    """Return the branches, tags and commits of a repository in the hub's cache."""
    refs = cache / "refs"
    commits = sorted(path.name for path in (cache / "snapshots").glob("*"))
    names = (str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file())
    return [*sorted(name for name in names if _commit(cache, name) in commits), *commits]


def _commit(cache: Path, revision: str) -> str | None:
    """Return the commit of a branch or tag; None if the cache has no such name."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision) or ".." in revision:
        return None
    path = cache / "refs" / revision
    if not path.is_file():
        return None
    with open_regular(path) as file:
        return file.read(MAX_REF_BYTES).decode(errors="replace").strip()


def _without_config(folder: Path) -> ModelError:
    """Build the error for a folder without config.json, from what it has instead."""
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    cached = [path.name for path in children if path.name.startswith("models--")]
    below = [path.name for path in children if (path / "config.json").is_file()]
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    others = [name for name in names if Path(name).suffix.lower() in OTHER_WEIGHTS]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    if cached:
        ids = [name.removeprefix("models--").replace("--", "/", 1) for name in cached]
        reason = f"this is a hub cache of several models; give one of its hub ids: {listing(ids)}"
    elif below:
        reason = f"there is one in {listing(below)} inside; give that folder"
    elif others:
        reason = (
            f"only {listing(others)}, which is not read; give the folder of the original checkpoint, with "
            f"config.json and safetensors"
        )
    elif weights:
        reason = f"it has {listing(weights)} alone; copy the model's config.json into it"
    else:
        reason = "give a checkpoint folder in Hugging Face format"
    return ModelError(f"{folder}: no config.json; {reason}{unfinished(folder)}")


def _download(model_id: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            model_id, revision=revision, allow_patterns=list(_FILES[not weights :])
        )
        return _located(Path(folder), None)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cache = Path(HF_HUB_CACHE) / f"models--{model_id.replace('/', '--')}"
    local = f"@{shortened(revision)}" if revision is not None else ""
    known = ""
    if (cache / "snapshots").is_dir():
        if revision is not None and any(
            len(revision) >= SHORTEST_COMMIT and each.startswith(revision)
            for each in revisions(cache)
        ):
            return _located(cache, revision)
        known = f"; the local hub cache has the revisions {listing(revisions(cache), 8)}"
    raise ModelError(
        f"no folder {shortened(model_id + local)!r}, and downloading it from the hub failed: "
        f"{shortened(reason, 300)}{known}"
    )
