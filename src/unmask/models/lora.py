"""Low-rank adapters of our network, in PEFT's files under the family's own names.

Source: arXiv:2106.09685. An adapter of a matrix W adds `scale * B A x`, with A `(r, in)` and B `(out, r)`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.errors import ConfigError, ModelError
from unmask.models.folder_files import read_object, shortened
from unmask.models.frozen_linear import FrozenLinear, plain_linear
from unmask.models.int8_linear import Int8Linear
from unmask.models.safetensors_files import tensors_of
from unmask.models.transformer import Transformer
from unmask.models.weight_names import NameMap, own_tensor

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
UNUSUAL = (
    "use_dora",
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "alora_invocation_tokens",
)
"""Keys of PEFT's configuration that change what an adapter computes, and are not read."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Kinds of `init_lora_weights` with which the adapter belongs to changed weights of the base."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter of one matrix, float32: `scale * b @ a`, with `a` `(r, in)` and `b` `(out, r)`."""

    a: Tensor
    b: Tensor
    scale: float


class LoraLinear(nn.Module):
    """A linear map with an adapter; `base` is not trained."""

    base: nn.Linear | FrozenLinear

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        device = base.weight.device
        self.a = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.dropout = nn.Dropout(dropout)

    @property
    def weight(self) -> Tensor:
        """The matrix with the adapter added."""
        return self.base.weight + self.delta()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base."""
        return self.base.bias

    def delta(self) -> Tensor:
        """Return the adapter as a matrix `(out, in)`, in float32."""
        return (self.b.float() @ self.a.float()) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base and the adapter."""
        result: Tensor = self.base(x)
        return (
            result
            + F.linear(F.linear(self.dropout(x), self.a.to(x.dtype)), self.b.to(x.dtype))
            * self.scale
        )


def matrices(model: Transformer) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield name, parent and attribute of every matrix that may have an adapter."""
    for number, layer in enumerate(model.layers):
        for part in ("attn", "ffn"):
            parent = getattr(layer, part)
            for target in TARGETS:
                child = getattr(parent, target, None)
                if isinstance(child, (nn.Linear, LoraLinear, Int8Linear)):
                    yield f"layers.{number}.{part}.{target}", parent, target


def add_adapters(
    model: Transformer,
    rank: int,
    alpha: float,
    targets: tuple[str, ...] = TARGETS,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Put adapters on the targets; A is drawn from U(-1/sqrt(in), 1/sqrt(in)), B is 0. Nothing else trains.

    Raises ConfigError when the model has none of the targets outside of experts, and for 8-bit products,
    which have no gradients.
    """
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise ConfigError(
            "adapters cannot be trained over quantization='int8-dynamic', whose products have no "
            "gradients; load the model without, and use lora.base='int8' to save memory"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for _, parent, target in list(matrices(model)):
        if target not in targets:
            continue
        adapter = LoraLinear(getattr(parent, target), rank, alpha, dropout)
        bound = 1 / math.sqrt(adapter.a.shape[1])
        with torch.no_grad():
            adapter.a.copy_((2 * torch.rand(adapter.a.shape, generator=generator) - 1) * bound)
        setattr(parent, target, adapter)
        count += 1
    if not count:
        raise ConfigError(
            f"lora.targets={','.join(targets)}: the model has none of these outside of experts; choose "
            f"from q, k, v, o"
        )


def adapters(model: Transformer) -> Iterator[tuple[str, LoraLinear]]:
    """Yield every adapter by the name of its matrix."""
    for name, parent, target in matrices(model):
        child = getattr(parent, target)
        if isinstance(child, LoraLinear):
            yield name, child


def merge_adapters(model: Transformer) -> None:
    """Add every adapter to its matrix and take it away; sums are rounded once to the matrix's dtype.

    A matrix of few bits becomes one of float32, the sum of its rounded weights and the adapter.
    """
    for _, parent, target in list(matrices(model)):
        child = getattr(parent, target)
        if isinstance(child, LoraLinear):
            with torch.no_grad():
                merged = child.base.weight.float() + child.delta()
                if isinstance(child.base, FrozenLinear):
                    setattr(parent, target, plain_linear(merged, child.base.bias))
                    continue
                child.base.weight.copy_(merged.to(child.base.weight.dtype))
            setattr(parent, target, child.base)


def quantize_bases(model: Transformer, kind: str) -> None:
    """Round the weights below every adapter to "int8" or "int4". Raises ConfigError for odd widths."""
    for _, adapter in adapters(model):
        if isinstance(adapter.base, nn.Linear):
            adapter.base = FrozenLinear(adapter.base, kind)


def save_adapters(model: Transformer, names: NameMap, folder: Path, base: str) -> None:
    """Write the adapters as PEFT does, for the family's published class; `base` is the model's name.

    Several matrices that the family stores as one have one adapter there, of the sum of their ranks; all
    others are then filled up with zeros to the same rank, which changes no product.
    """
    own = dict(adapters(model))
    places = _places(model, names)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for published, members in places.items():
        found = [own[name] for name in members if name in own]
        if found:
            pairs[published] = _joined(found, [own.get(n) or members[n] for n in members])
    first = next(iter(own.values()))
    rank = max(len(a) for a, _ in pairs.values())
    alpha, dropout = first.scale * rank, first.dropout.p
    tensors: dict[str, Tensor] = {}
    modules: set[str] = set()
    for published, (a, b) in pairs.items():
        more = rank - len(a)
        tensors[f"{PREFIX}{published}.lora_A.weight"] = F.pad(a, (0, 0, 0, more)).contiguous()
        tensors[f"{PREFIX}{published}.lora_B.weight"] = F.pad(b, (0, more)).contiguous()
        modules.add(published.rpartition(".")[2])
    # `ff_out` of LLaDA is also the name of its head, which has no adapter.
    is_ambiguous = "ff_out" in modules
    pattern = r".*\.blocks\.\d+\.(" + "|".join(sorted(modules)) + ")"
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": pattern if is_ambiguous else sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    (folder / ADAPTER_FILE).chmod(0o644)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _places(model: Transformer, names: NameMap) -> dict[str, dict[str, nn.Module]]:
    """Return the published name of every matrix that may have an adapter, and our matrices in it."""
    own = {name: getattr(parent, target) for name, parent, target in matrices(model)}
    places: dict[str, dict[str, nn.Module]] = {}
    for name in own:
        published, held = own_tensor(f"{name}.weight", names)
        members = [each.removesuffix(".weight") for each in held]
        places.setdefault(published.removesuffix(".weight"), {each: own[each] for each in members})
    return places


def _joined(found: list[LoraLinear], rows: list[nn.Module]) -> tuple[Tensor, Tensor]:
    """Return A and B of matrices below each other: `rows`, of which `found` have adapters."""
    a = torch.cat([each.a.detach().float().cpu() for each in found])
    blocks, start = list[Tensor](), 0
    for matrix in rows:
        if not isinstance(matrix, LoraLinear):
            assert isinstance(matrix, nn.Linear), "see matrices"
            blocks.append(torch.zeros(matrix.out_features, len(a)))
            continue
        b = matrix.b.detach().float().cpu()
        blocks.append(F.pad(b, (start, len(a) - start - b.shape[1])))
        start += b.shape[1]
    return a, torch.cat(blocks)


def load_adapters(model: Transformer, names: NameMap, folder: Path) -> None:
    """Put the adapters of a PEFT folder on the model. Raises ModelError for what does not fit it."""
    adapted = read_adapters(model, names, folder)
    for name, parent, target in list(matrices(model)):
        if name not in adapted:
            continue
        part = adapted[name]
        rank = part.a.shape[0]
        adapter = LoraLinear(getattr(parent, target), rank, part.scale * rank)
        with torch.no_grad():
            adapter.a.copy_(part.a)
            adapter.b.copy_(part.b)
        setattr(parent, target, adapter)


def read_adapters(model: Transformer, names: NameMap, folder: Path) -> dict[str, LowRank]:
    """Return the adapters of a PEFT folder by the names of the model's matrices.

    Raises ModelError for a folder that cannot be read, and for one that does not fit the model.
    """
    config, rest = _read_folder(folder)
    alpha, rank = _numbers(config, folder)
    adapted: dict[str, LowRank] = {}
    for published, members in _places(model, names).items():
        a = rest.pop(f"{PREFIX}{published}.lora_A.weight", None)
        b = rest.pop(f"{PREFIX}{published}.lora_B.weight", None)
        if a is None and b is None:
            continue
        widths = [_widths(matrix) for matrix in members.values()]
        rows = [num_rows for num_rows, _ in widths]
        shapes = (rank, widths[0][1]), (sum(rows), rank)
        if a is None or b is None:
            raise ModelError(
                f"{folder}: the adapter of {published} has one of lora_A and lora_B; write it anew"
            )
        if (a.shape, b.shape) != shapes:
            raise ModelError(
                f"{folder}: the adapter of {published} is of another size than the model: "
                f"{tuple(a.shape)} and {tuple(b.shape)} where r={rank} and the matrix need {shapes[0]} and "
                f"{shapes[1]}; use an adapter of this model"
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ModelError(f"{folder}: the adapter of {published} is not finite; train it anew")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        for name, part in zip(members, torch.split(b.float(), rows), strict=True):
            adapted[name] = LowRank(a.float(), part, scale)
    if rest or not adapted:
        listed = ", ".join(sorted(rest)[:3])
        raise ModelError(
            f"{folder}: {len(rest)} tensors of the adapter fit no matrix of the model ({listed}); use the "
            f"adapter of this model"
        )
    return adapted


def _widths(matrix: nn.Module) -> tuple[int, int]:
    """Return the numbers of rows and columns of a matrix, with or without an adapter."""
    base = matrix.base if isinstance(matrix, LoraLinear) else matrix
    assert isinstance(base, (nn.Linear, FrozenLinear, Int8Linear)), "see matrices"
    return base.out_features, base.in_features


def _read_folder(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the configuration and the tensors of an adapter. Raises ModelError."""
    try:
        config = dict(read_object(folder / ADAPTER_CONFIG))
        tensors_of(folder / ADAPTER_FILE)  # checks the header
        tensors = load_file(folder / ADAPTER_FILE)
    except (ModelError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: no adapter of PEFT can be read ({type(error).__name__}); give a folder with "
            f"{ADAPTER_CONFIG} and {ADAPTER_FILE}"
        ) from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: peft_type must be LORA; other adapters are not read")
    unusual = [key for key in UNUSUAL if config.get(key)]
    if unusual or config.get("bias", "none") != "none":
        raise ModelError(
            f"{folder}: {', '.join(unusual) or 'bias'} of {ADAPTER_CONFIG} is not supported; leave it out"
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGES_BASE):
        raise ModelError(
            f"{folder}: init_lora_weights={shortened(start)} has changed the base's weights, which this "
            f"folder does not have; convert the adapter to a plain one with PEFT"
        )
    return config, tensors


def _numbers(config: dict[str, object], folder: Path) -> tuple[float, int]:
    """Return `lora_alpha` and `r`, by default 8 as in PEFT. Raises ModelError."""
    alpha, rank = config.get("lora_alpha", 8), config.get("r", 8)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise ModelError(
            f"{folder}: lora_alpha={shortened(repr(alpha))} must be a number; correct {ADAPTER_CONFIG}"
        )
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(
            f"{folder}: r={shortened(repr(rank))} must be 1 or more; correct {ADAPTER_CONFIG}"
        )
    return alpha, rank
