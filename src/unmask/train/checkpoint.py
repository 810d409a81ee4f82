"""Checkpoints without pickle: weights in the family's format, optimizer state beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import ModelError
from unmask.models import llada
from unmask.models._transformer import Transformer
from unmask.models._weights import load_weights, save_weights

Optimizers = dict[str, torch.optim.Optimizer]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(model: Transformer, tokenizer_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a complete checkpoint folder in LLaDA's Hugging Face format."""
    folder.mkdir(parents=True, exist_ok=True)
    name = str(dtype).removeprefix("torch.")
    config = llada.config_from_spec(model.spec, name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(model, folder / "model.safetensors", llada.NAMES, dtype)
    for file in TOKENIZER_FILES:
        if (tokenizer_folder / file).resolve() != (folder / file).resolve():
            shutil.copyfile(tokenizer_folder / file, folder / file)


def save(
    model: Transformer, optimizers: Optimizers, step: int, tokenizer_folder: Path, output: Path
) -> Path:
    """Write `output/step-N` (complete or not at all) and forget all but the newest two."""
    final = output / f"step-{step:06d}"
    partial = output / f".step-{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    export(model, tokenizer_folder, partial, torch.float32)
    tensors: dict[str, Tensor] = {}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, partial / "optimizer.safetensors")
    (partial / "progress.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in checkpoints(output)[:-2]:
        shutil.rmtree(old)
    return final


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in output.glob("step-*") if (path / "progress.json").exists())


def load_into(model: Transformer, folder: Path) -> None:
    """Copy the weights of a checkpoint folder into a model of the same sizes. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such checkpoint folder")
    fresh = dict(model.named_parameters())
    with torch.device("meta"):
        shell = Transformer(model.spec)
    load_weights(shell, folder, llada.NAMES, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for name, value in shell.named_parameters():
            fresh[name].copy_(value)


def restore(model: Transformer, optimizers: Optimizers, folder: Path) -> int:
    """Load a checkpoint into a model and its optimizers; returns the number of steps done."""
    load_into(model, folder)
    with safe_open(folder / "optimizer.safetensors", framework="pt") as handle:
        for name, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key in handle.keys():
                owner, index, field = key.split(".", 2)
                if owner == name:
                    state.setdefault(int(index), {})[field] = handle.get_tensor(key)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    if "step" not in progress:
        raise ModelError(f"{folder}: progress.json holds no step")
    return int(progress["step"])
