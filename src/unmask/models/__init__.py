"""Checkpoints in their families' own formats, loaded into the one transformer.

A family is a file of `models/families` that defines `ARCHITECTURES`, `MODEL_TYPES`, `MASK` (the text of its
mask token), `NAMES`, `spec_from_config` and, for experts stored in several layouts, `FORMS`. To add a
family, write the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError, ModelError, unknown_name
from unmask.models.hf_config import Config, added_token_id
from unmask.models.registry import Family, find_family
from unmask.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from unmask.models.convert import Converted
    from unmask.models.transformer import Transformer
    from unmask.models.weights import Progress

BUNDLED = {"demo": Path(__file__).parent.parent / "demo" / "model"}
DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt")


def resolve_model(model: str | Path, *, weights: bool = True) -> Path:
    """Return the folder of a bundled name, a folder, or a hub id (downloaded; safetensors and JSON only).

    `weights=False` leaves safetensors out of a download. Raises ModelError when there is no such model.
    """
    text = str(model)
    if text in BUNDLED:
        if not (BUNDLED[text] / "config.json").exists():
            raise ModelError(f"the bundled model {text!r} is not installed; reinstall unmask")
        return BUNDLED[text]
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model {text!r} is a file; give the folder that contains config.json")
    looks_like_id = text.count("/") == 1 and not text.startswith((".", "~", "/"))
    if not looks_like_id:
        raise unknown_model(text)
    return _download(text, weights)


def unknown_model(text: str) -> ModelError:
    """Build the error for a name that is neither bundled nor a folder nor a hub id."""
    hint = str(unknown_name("model", text, BUNDLED))
    return ModelError(f"{hint}; or give a folder with config.json, or a hub id like owner/name")


def _download(model_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_FILES[not weights :])))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no folder {model_id!r}, and downloading it from the hub failed: {reason}"
        ) from None


def read_config(folder: Path) -> dict[str, object]:
    """Parse the `config.json` of a checkpoint folder. Raises ModelError."""
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(
            f"{folder}: no config.json; give a checkpoint folder in Hugging Face format"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return config


def read_spec(model: str | Path) -> ModelSpec:
    """Return the spec of a checkpoint without reading its weights. Raises ModelError."""
    folder = resolve_model(model, weights=False)
    config = read_config(folder)
    return _spec(find_family(config, folder), config, folder)


def _spec(family: Family, config: Config, folder: Path) -> ModelSpec:
    """Return the config's spec; a missing mask id is the tokenizer's, else the family's default."""
    spec = family.spec_from_config(config)
    if config.get("mask_token_id") is None:
        mask_id = added_token_id(folder, family.mask)
        if mask_id is not None:
            return replace(spec, mask_id=mask_id)
    return spec


def torch_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; None is float32 on the CPU, bfloat16 elsewhere. Raises ConfigError."""
    import torch

    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    else:
        name = dtype
    if name not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES)
    result: torch.dtype = getattr(torch, DTYPES[name])
    return result


def torch_device(device: str | torch.device | None) -> torch.device:
    """Return a device that exists; None is CUDA if available, else the CPU. Raises ConfigError."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}; use cpu, cuda or cuda:N") from None
    if result.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} is not available: this machine has no CUDA; use cpu")
    if result.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not supported; use cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if result.type == "cuda" else 0
    if result.type == "cuda" and result.index is not None and result.index >= count:
        raise ConfigError(f"device {device!r}: there are {count} CUDA devices; use a lower number")
    return result


def load_model(
    model: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    make: Callable[[ModelSpec], Transformer] | None = None,
) -> Transformer:
    """Load a checkpoint as a `Transformer` in eval mode, gradients off.

    `model` is a bundled name, a folder or a hub id; `dtype` e.g. "float32" or "bfloat16"; `device` e.g.
    "cpu" or "cuda". `progress(done, total)` is called with bytes as they are read. Weights are read
    straight into their parameters: the peak of memory is their size and a few megabytes. `make` builds the
    empty network; `distributed.tensor_parallel` passes one that builds a rank's part. Raises ModelError
    (missing, unsupported, pickled or ill-fitting checkpoint) and ConfigError (dtype, device).
    """
    import torch

    from unmask.models.transformer import Transformer
    from unmask.models.weights import load_weights

    where = torch_device(device)
    kind = torch_dtype(dtype, where)
    folder = resolve_model(model)
    config = read_config(folder)
    family = find_family(config, folder)
    with torch.device("meta"):
        network = (make or Transformer)(_spec(family, config, folder))
    load_weights(network, folder, family.names, kind, where, progress)
    return network.eval().requires_grad_(False)


def convert_checkpoint(
    model: str | Path, target: str | Path, form: str, progress: Progress | None = None
) -> Converted:
    """Write a checkpoint into the new folder `target` with its weights in another layout, bit by bit equal.

    `form`: "family" (as released), "unmask" (the parameters of `Transformer`: experts stacked, query, key
    and value separate), "stacked" (LLaDA2) or "fused" (LLaDA-MoE, SDAR with experts). `load_model` reads
    all of them. Config, tokenizer and texts are copied. Raises ModelError and ConfigError.
    """
    import torch

    from unmask.models.convert import convert
    from unmask.models.transformer import Transformer

    folder = resolve_model(model)
    config = read_config(folder)
    family = find_family(config, folder)
    with torch.device("meta"):
        network = Transformer(_spec(family, config, folder))
    return convert(network, family, (folder, Path(target).expanduser()), form, progress=progress)
