"""Safetensors to our parameters and back, strictly: every name and shape must be accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import ModelError
from unmask.models._names import NameMap, Stored, checkpoint_name, layout
from unmask.models._transformer import Transformer

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
    filling = _Filling(model, names, dtype, device)
    tied_head = checkpoint_name("lm_head.weight", names) if model.spec.tie_embeddings else None
    head: Tensor | None = None
    for name, path, handle in _tensors(shard_files(folder)):
        if name == tied_head:
            head = handle.get_tensor(name)
        else:
            filling.take(name, path, handle)
    problems = filling.all_problems()
    embed = filling.state.get("embed.weight")
    tied = head is None or embed is None or torch.equal(head.to(embed), embed)
    if not tied:
        problems.append(f"{tied_head} differs from the embedding although the config ties them")
    if problems:
        raise ModelError(f"{folder}: the weights do not fit the config: " + "; ".join(problems))
    model.load_state_dict(filling.state, assign=True)


class _Filling:
    """The state of a model on its way from the files, and what is wrong with them."""

    def __init__(
        self, model: Transformer, names: NameMap, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self.layout = layout(self.shapes, names)
        self.dtype, self.device = dtype, device
        self.state: dict[str, Tensor] = {}
        self.taken: dict[str, set[int | None]] = {name: set() for name in self.shapes}
        self.seen: set[str] = set()
        self.unmapped: list[str] = []
        self.problems: list[str] = []

    def take(self, name: str, path: Path, handle: Any) -> None:
        """One stored tensor."""
        place = self.layout.get(name)
        if place is None:
            self.unmapped.append(name)
            return
        if name in self.seen or any(self._is_taken(ours, place.expert) for ours in place.ours):
            self.problems.append(f"stored twice: {name}")
            return
        self.seen.add(name)
        for ours in place.ours:
            self.taken[ours].add(place.expert)
        found = tuple(handle.get_slice(name).get_shape())
        if found != place.shape:
            self.problems.append(f"misshapen: {name} is {found}, the config says {place.shape}")
            return
        try:
            tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{path}: {name} cannot be read ({error})") from None
        if not tensor.is_floating_point():
            self.problems.append(f"ill-typed: {name} is {tensor.dtype}, not floating point")
            return
        self._put(place, tensor.to(device=self.device, dtype=self.dtype))

    def _is_taken(self, ours: str, expert: int | None) -> bool:
        taken = self.taken[ours]
        return bool(taken) and (expert is None or None in taken or expert in taken)

    def _put(self, place: Stored, tensor: Tensor) -> None:
        parts = [tensor]
        if len(place.ours) > 1:
            parts = list(torch.split(tensor, place.rows(self.shapes), dim=place.row_dim))
            parts = [part.clone() for part in parts]  # each is freed and moved by itself
        for ours, part in zip(place.ours, parts, strict=True):
            if place.expert is None:
                self.state[ours] = part
                continue
            if ours not in self.state:
                self.state[ours] = part.new_empty(self.shapes[ours])
            self.state[ours][place.expert] = part

    def all_problems(self) -> list[str]:
        """What is wrong, once every file was read."""
        problems = list(self.problems)
        if self.unmapped:
            names = ", ".join(sorted(self.unmapped))
            problems.append(f"unmapped (no such parameter in this family): {names}")
        missing = [
            name
            for name, place in self.layout.items()
            if place.is_first
            and any(not {None, place.expert} & self.taken[ours] for ours in place.ours)
        ]
        if missing:
            problems.append(f"missing: {', '.join(sorted(missing))}")
        return problems


def save_weights(model: Transformer, path: Path, names: NameMap, dtype: torch.dtype) -> None:
    """Write one safetensors file with the family's own names, each parameter in the family's first way."""
    from safetensors.torch import save_file

    ours = {name: value.detach() for name, value in model.named_parameters()}
    tensors = {}
    for name, place in layout({key: tuple(v.shape) for key, v in ours.items()}, names).items():
        if place.is_first:
            parts = [
                ours[key] if place.expert is None else ours[key][place.expert] for key in place.ours
            ]
            tensors[name] = torch.cat(parts, dim=place.row_dim).to(dtype).cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner only
