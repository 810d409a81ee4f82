"""New weights for a loaded model, of the same shape: read and checked first, then exchanged at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unmask.errors import ConfigError, ModelError
from unmask.models import load_model, read_spec
from unmask.models.adapters import AdaptedLinear
from unmask.models.packed_weights import PackedLinear, PackedStack, pack_weights
from unmask.models.transformer import Transformer

Weights = Mapping[str, Tensor]
"""Tensors by the parameters' names, on the CPU."""


def read_weights(model: Transformer, folder: Path) -> Weights:
    """Return the weights of a checkpoint folder for `use_weights`; they take memory beside the model's.

    Raises ModelError for a folder that is no checkpoint or one of another shape, and ConfigError for a
    model that is quantized or shared by several processes.
    """
    if model.ranks.size > 1:
        raise ConfigError(
            "weights cannot be exchanged with tensor_parallel_size > 1; restart instead"
        )
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ConfigError(
            "the weights of a model with adapters, which belong to them, cannot be exchanged; load it "
            "without adapters"
        )
    spec, own = read_spec(folder), model.spec
    names = [item.name for item in dataclasses.fields(own)]
    other = [name for name in names if getattr(spec, name) != getattr(own, name)]
    if other:
        name = other[0]
        raise ModelError(
            f"{folder}: {name}={getattr(spec, name)!r}, but the loaded model has {getattr(own, name)!r}; "
            f"give a checkpoint of the same shape, or load this one anew"
        )
    parameters = dict(model.named_parameters())
    loaded = load_model(folder, next(iter(parameters.values())).dtype, "cpu")
    weights = {name: value.detach() for name, value in loaded.named_parameters()}
    kinds = {name: (value.shape, value.dtype) for name, value in parameters.items()}
    is_plain = all(type(value.data) is Tensor for value in parameters.values())
    if not is_plain or kinds != {name: (v.shape, v.dtype) for name, v in weights.items()}:
        raise ConfigError(
            "the weights of a quantized model cannot be exchanged; load it without quantization"
        )
    return weights


@torch.no_grad()
def use_weights(model: Transformer, weights: Weights) -> None:
    """Copy weights into the model, and pack them anew where they were packed."""
    for name, value in model.named_parameters():
        value.copy_(weights[name])
    if any(isinstance(module, (PackedLinear, PackedStack)) for module in model.modules()):
        pack_weights(model)
