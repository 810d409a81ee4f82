"""Safetensors to our parameters and back, strictly: every name and shape must be accounted for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import ModelError
from unmask.models._transformer import Transformer

NameMap = Sequence[tuple[str, str]]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def checkpoint_name(ours: str, names: NameMap) -> str:
    """The checkpoint's name of one of our parameters."""
    layer = re.search(r"\.(\d+)\.", ours)
    suffix = ours.rsplit(".", 1)[1]
    generic = ours if layer is None else ours.replace(layer.group(0), ".{i}.", 1)
    generic = generic[: -len(suffix)] + "{p}"
    for theirs, mine in names:
        if mine == generic:
            return theirs.format(i=layer.group(1) if layer else "", p=suffix)
    raise AssertionError(f"no checkpoint name for {ours}")


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder. Raises ModelError when there are none."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        files = [folder / name for name in _shard_names(index)]
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise ModelError(
                f"{folder}: the index names shards that are missing: {', '.join(absent)}"
            )
        return files
    if single.exists():
        return [single]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: only pickle weights found ({pickles[0]}); unpickling runs code, so unmask reads "
            f"safetensors only. Convert the checkpoint first, e.g. with safetensors.torch.save_file"
        )
    raise ModelError(f"{folder}: no model.safetensors and no model.safetensors.index.json")


def _shard_names(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{index}: not valid JSON ({error})") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map from tensor names to files")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: weight_map must name a file for every tensor")
    return sorted(set(weight_map.values()))


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Path, Any]]:
    with ExitStack() as stack:
        for path in files:
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a readable safetensors file ({error})") from None
            for name in handle.keys():
                yield name, path, handle


def load_weights(
    model: Transformer, folder: Path, names: NameMap, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill a model that was built on the meta device.

    Raises ModelError naming every tensor that is unmapped, missing, stored twice or misshapen.
    """
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    wanted = {checkpoint_name(ours, names): ours for ours in shapes}
    tied_head = checkpoint_name("lm_head.weight", names) if model.spec.tie_embeddings else None
    state: dict[str, Tensor] = {}
    seen: set[str] = set()
    unmapped: list[str] = []
    problems: list[str] = []
    head: Tensor | None = None
    for name, path, handle in _tensors(shard_files(folder)):
        if name == tied_head:
            head = handle.get_tensor(name)
        elif name not in wanted:
            unmapped.append(name)
        elif name in seen:
            problems.append(f"stored twice: {name}")
        else:
            seen.add(name)
            found = tuple(handle.get_slice(name).get_shape())
            expected = shapes[wanted[name]]
            if found != expected:
                problems.append(f"misshapen: {name} is {found}, the config says {expected}")
                continue
            try:
                tensor = handle.get_tensor(name)
            except SafetensorError as error:
                raise ModelError(f"{path}: {name} cannot be read ({error})") from None
            if not tensor.is_floating_point():
                problems.append(f"ill-typed: {name} is {tensor.dtype}, not floating point")
                continue
            state[wanted[name]] = tensor.to(device=device, dtype=dtype)
    missing = [name for name in wanted if name not in seen]
    if unmapped:
        problems.append(
            f"unmapped (no such parameter in this family): {', '.join(sorted(unmapped))}"
        )
    if missing:
        problems.append(f"missing: {', '.join(sorted(missing))}")
    embed = state.get("embed.weight")
    tied = head is None or embed is None or torch.equal(head.to(embed), embed)
    if not tied:
        problems.append(f"{tied_head} differs from the embedding although the config ties them")
    if problems:
        raise ModelError(f"{folder}: the weights do not fit the config: " + "; ".join(problems))
    model.load_state_dict(state, assign=True)


def save_weights(model: Transformer, path: Path, names: NameMap, dtype: torch.dtype) -> None:
    """Write one safetensors file with the family's own names."""
    from safetensors.torch import save_file

    tensors = {
        checkpoint_name(ours, names): value.detach().to(dtype).cpu().contiguous()
        for ours, value in model.named_parameters()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner only
