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
from unmask.models import load_model
from unmask.models.families import dream, llada
from unmask.models.transformer import Transformer
from unmask.models.weights import save_weights

Optimizers = dict[str, torch.optim.Optimizer]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export(model: Transformer, tokenizer_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a complete checkpoint folder in its family's Hugging Face format (LLaDA's or Dream's).

    Dream ends a turn with a token of another text: in the written tokenizer, the token `turn_end` of the
    spec has that text and the same id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family = dream if model.spec.family == "dream" else llada
    name = str(dtype).removeprefix("torch.")
    config = family.config_from_spec(model.spec, name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(model, folder / "model.safetensors", family.NAMES, dtype)
    for file in TOKENIZER_FILES:
        text = (tokenizer_folder / file).read_text(encoding="utf-8")
        if family is dream and model.spec.turn_end is not None:
            text = text.replace(model.spec.turn_end, dream.TURN_END)
        (folder / file).write_text(text, encoding="utf-8")


def save(
    model: Transformer, optimizers: Optimizers, step: int, tokenizer_folder: Path, output: Path
) -> Path:
    """Write `output/step-N`, complete or not at all, and delete all but the newest two."""
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
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in output.glob("step-*") if (path / "progress.json").exists())


def load_into(model: Transformer, source: str | Path) -> None:
    """Copy the weights of a bundled name or a checkpoint folder into a model of the same sizes.

    The families may differ; biases that the source lacks keep their values. Raises ModelError.
    """
    weights = dict(load_model(source, torch.float32, "cpu").named_parameters())
    fresh = dict(model.named_parameters())
    misfits = [
        name
        for name in sorted(weights.keys() | fresh.keys())
        if not (name in fresh and name not in weights and name.endswith(".bias"))
        and getattr(weights.get(name), "shape", None) != getattr(fresh.get(name), "shape", None)
    ]
    if misfits:
        raise ModelError(
            f"{source}: of other sizes than the recipe's: {', '.join(misfits)}; use a checkpoint of the "
            f"recipe's sizes, or the recipe of the checkpoint"
        )
    with torch.no_grad():
        for name, value in weights.items():
            fresh[name].copy_(value)


def restore(model: Transformer, optimizers: Optimizers, folder: Path) -> int:
    """Load a checkpoint into a model and its optimizers; return the number of steps done."""
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
        raise ModelError(
            f"{folder}: progress.json has no step; delete this folder to resume from an earlier one"
        )
    return int(progress["step"])
