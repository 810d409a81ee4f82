"""Checkpoints in their families' own formats, loaded into the one transformer.

A family is a file of `models/families` that defines `ARCHITECTURES`, `MODEL_TYPES`, `MASK` (the text of its
mask token), `NAMES`, `spec_from_config` and, for experts stored in several layouts, `FORMS`. To add a
family, write the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import CheckpointWarning, ConfigError, ModelError, unknown_name
from unmask.models.folder_files import read_object, shortened
from unmask.models.folders import BUNDLED, resolve_model, with_revision
from unmask.models.hf_config import Config, refuse_quantized
from unmask.models.registry import Family, find_family
from unmask.models.spec import ModelSpec
from unmask.models.special_ids import ID_KEYS, FolderTokens, gather

if TYPE_CHECKING:
    import torch

    from unmask.models.convert import Converted
    from unmask.models.transformer import Transformer
    from unmask.models.weights import Progress

__all__ = [
    "AUTO",
    "BUNDLED",
    "DTYPES",
    "checkpoint_dtype",
    "convert_checkpoint",
    "load_model",
    "read_config",
    "read_spec",
    "resolve_model",
    "torch_device",
    "torch_dtype",
    "with_revision",
]
DTYPES = {
    "float64": "float64",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float": "float32",
}
AUTO = "auto"
"""Name of the dtype that the checkpoint's config gives."""


def read_config(folder: Path) -> dict[str, object]:
    """Parse the `config.json` of a checkpoint folder. Raises ModelError."""
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(
            f"{folder}: no config.json; give a checkpoint folder in Hugging Face format"
        )
    return read_object(path)


def read_spec(model: str | Path, revision: str | None = None) -> ModelSpec:
    """Return the spec of a checkpoint without reading its weights. Raises ModelError."""
    folder = resolve_model(model, revision, weights=False)
    config = read_config(folder)
    return _spec(find_family(config, folder), config, folder)


def _spec(family: Family, config: Config, folder: Path) -> ModelSpec:
    """Return the spec of a config and of the special ids in all files of its folder."""
    refuse_quantized(config)
    tokens = FolderTokens(folder)
    for text, feature in family.unsupported_tokens.items():
        if (id_ := tokens.id_of(text)) is not None:
            raise ModelError(
                f"{folder}: the tokenizer has {text} ({id_}), by which {feature}; this is not supported"
            )
    without_ids = {key: value for key, value in config.items() if key not in ID_KEYS}
    ids = gather(config, tokens, family.mask, family.spec_from_config(without_ids))
    spec = family.spec_from_config(ids.apply(config))
    more = tuple(id_ for id_ in ids.end_ids if id_ != spec.eos_id)
    return replace(
        spec, end_ids=more, bos_id=ids.bos_id, notes=ids.notes, minor_notes=ids.minor_notes
    )


def torch_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; None is float32 on the CPU, bfloat16 elsewhere. Raises ConfigError.

    "auto" needs a checkpoint: `checkpoint_dtype` gives its name.
    """
    import torch

    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    else:
        name = dtype
    if name not in DTYPES:
        raise unknown_name("dtype", str(dtype), (AUTO, *DTYPES))
    result: torch.dtype = getattr(torch, DTYPES[name])
    return result


def checkpoint_dtype(config: Config, folder: Path, device: torch.device) -> str:
    """Return the name of the dtype that "auto" stands for.

    It is `torch_dtype` (newer files: `dtype`) of the config, else that of most stored elements. On a CPU
    it is float32 instead of float16, for which a CPU has no fast kernels. Raises ModelError.
    """
    value = config.get("torch_dtype") or config.get("dtype")
    if value is None:
        from unmask.models.safetensors_files import most_common_dtype

        name = most_common_dtype(folder)
    else:
        name = DTYPES.get(str(value).removeprefix("torch."), "")
        if not name:
            hint = unknown_name("torch_dtype", shortened(str(value)), DTYPES)
            raise ModelError(
                f"config.json: torch_dtype={shortened(str(value))!r}: {hint}; set dtype, e.g. "
                f"dtype=bfloat16, instead of dtype=auto"
            )
    return "float32" if (name, device.type) == ("float16", "cpu") else name


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
    revision: str | None = None,
) -> Transformer:
    """Load a checkpoint as a `Transformer` in eval mode, gradients off.

    `model` is a bundled name, a folder or a hub id, of which `revision` is a branch, a tag or a commit;
    `dtype` e.g. "float32", "bfloat16", or "auto" (the checkpoint's); `device` e.g. "cpu" or "cuda".
    `progress(done, total)` is called with bytes as they are read. Weights are read straight into their
    parameters: the peak of memory is their size and a few megabytes. `make` builds the empty network;
    `distributed.tensor_parallel` passes one that builds a rank's part. Raises ModelError
    (missing, unsupported, pickled or ill-fitting checkpoint) and ConfigError (dtype, device).
    """
    import torch

    from unmask.models.transformer import Transformer
    from unmask.models.weights import load_weights

    where = torch_device(device)
    kind = None if dtype == AUTO else torch_dtype(dtype, where)
    folder = resolve_model(model, revision)
    config = read_config(folder)
    if kind is None:
        kind = torch_dtype(checkpoint_dtype(config, folder, where), where)
    family = find_family(config, folder)
    spec = _spec(family, config, folder)
    if spec.notes:
        warnings.warn(f"{folder}: {'; '.join(spec.notes)}", CheckpointWarning, stacklevel=2)
    with torch.device("meta"):
        network = (make or Transformer)(spec)
    load_weights(network, folder, family.names, kind, where, progress)
    avoid_attention_plans(where)
    return network.eval().requires_grad_(False)


def avoid_attention_plans(device: torch.device) -> None:
    """Turn cuDNN's attention off for the process if `device` is a CUDA device.

    It builds a plan of up to half a second for every new shape, and the shapes of a decode change all the
    time. To compare, call `torch.backends.cuda.enable_cudnn_sdp(True)` after the model is loaded.
    """
    import torch

    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def convert_checkpoint(
    model: str | Path,
    target: str | Path,
    form: str,
    progress: Progress | None = None,
    revision: str | None = None,
) -> Converted:
    """Write a checkpoint into the new folder `target` with its weights in another layout, bit by bit equal.

    `form`: "family" (as released), "unmask" (the parameters of `Transformer`: experts stacked, query, key
    and value separate), "stacked" (LLaDA2) or "fused" (LLaDA-MoE, SDAR with experts). `load_model` reads
    all of them. Config, tokenizer and texts are copied. Raises ModelError and ConfigError.
    """
    import torch

    from unmask.models.convert import convert
    from unmask.models.transformer import Transformer

    folder = resolve_model(model, revision)
    config = read_config(folder)
    family = find_family(config, folder)
    with torch.device("meta"):
        network = Transformer(_spec(family, config, folder))
    return convert(network, family, (folder, Path(target).expanduser()), form, progress=progress)
