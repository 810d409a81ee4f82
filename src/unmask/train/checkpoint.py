"""Checkpoints without pickle: weights in the family's format, optimizer state beside them.

A checkpoint is written to another name, synced to disk (fsync), and renamed (`durable.new_folder`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.durable import digests, first_damage, new_folder
from unmask.errors import ConfigError, ModelError
from unmask.models import load_model
from unmask.models.families import dream, llada
from unmask.models.transformer import Transformer
from unmask.models.weights import save_weights

Optimizers = dict[str, torch.optim.Optimizer]
PROGRESS, OPTIMIZER = "progress.json", "optimizer.safetensors"
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
    """Write `output/step-N`, complete or not at all, and delete all but the newest two.

    `progress.json` holds the SHA-256 of every other file, so that damage is found. Raises ConfigError when
    the disk is full or the folder cannot be written; the checkpoints before stay.
    """

    def write(folder: Path) -> None:
        export(model, tokenizer_folder, folder, torch.float32)
        save_file(optimizer_tensors(optimizers), folder / OPTIMIZER)

    final = write_checkpoint(output, step, write)
    for old in checkpoints(output)[:-2]:
        shutil.rmtree(old)
    return final


def write_checkpoint(
    output: Path, step: int, write: Callable[[Path], None], **facts: float | None
) -> Path:
    """Write `output/step-N`, complete or not at all; `write` fills the folder, `facts` go to progress.json.

    Raises ConfigError when the disk is full or the folder cannot be written.
    """
    final = output / f"step-{step:06d}"
    try:
        with new_folder(final) as partial:
            write(partial)
            progress = {"step": step, **facts, "sha256": digests(partial)}
            text = json.dumps(progress, indent=1) + "\n"
            (partial / PROGRESS).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{final} cannot be written: {reason}; make room and give the same command again: it goes on "
            f"from the checkpoint before"
        ) from None
    return final


def partial_folder(final: Path) -> Path:
    """Return the folder that `durable.new_folder` fills before it becomes `final`."""
    return final.with_name(f".{final.name}.partial")


def optimizer_tensors(optimizers: Optimizers) -> dict[str, Tensor]:
    """Return the optimizers' state by `optimizer.parameter.field`."""
    tensors: dict[str, Tensor] = {}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value).contiguous()
    return tensors


def checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints, oldest first; `damage` tells whether one can be read."""
    return sorted(path for path in output.glob("step-*") if (path / PROGRESS).exists())


def damage(folder: Path) -> str | None:
    """Return why a checkpoint cannot be used; None for a good one. Reads all of its files."""
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{PROGRESS} cannot be read"
    if not isinstance(progress, dict) or folder.name != f"step-{progress.get('step', -1):06}":
        return f"{PROGRESS} is not of this checkpoint"
    expected = progress.get("sha256")
    if not isinstance(expected, dict) or not expected:
        return (
            f"{PROGRESS} has no digests of the files: it was not written by this version of unmask"
        )
    return first_damage(folder, expected)


def newest(output: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that can be read, and the damage of those after it.

    None without any checkpoint. Raises ModelError if there are checkpoints and none can be read.
    """
    damaged: list[str] = []
    for folder in reversed(checkpoints(output)):
        reason = damage(folder)
        if reason is None:
            return folder, damaged
        damaged.append(f"{folder}: {reason}")
    if damaged:
        raise ModelError(
            f"no checkpoint can be read: {'; '.join(damaged)}; delete these folders to begin anew"
        )
    return None, []


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
    load_optimizers(optimizers, folder / OPTIMIZER)
    return int(json.loads((folder / PROGRESS).read_text(encoding="utf-8"))["step"])


def load_optimizers(optimizers: Optimizers, path: Path) -> None:
    """Load what `optimizer_tensors` returned."""
    with safe_open(path, framework="pt") as handle:
        for name, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key in handle.keys():
                owner, index, field = key.split(".", 2)
                if owner == name:
                    state.setdefault(int(index), {})[field] = handle.get_tensor(key)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
