"""Weights a second time, in the layout of the CPU's matrix kernels.

A product with few rows is bound by reading the weights, and the plain kernels lay them out anew every time:
on two AVX2 cores, 17 rows times a 126464 x 1024 head take 95 ms, with the layout made once 26 ms.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ELEMENTS = 1 << 20
"""Below, there is nothing to gain."""
ROWS_HINT = 32
"""The number of rows that the layout is chosen for; it serves all others too."""


class PackedLinear(nn.Linear):
    """The same parameters as a linear layer, and their packed copy, which is used without gradients."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta", bias=False)
        self.weight, self.bias = plain.weight, plain.bias
        self.packed: Tensor = _ops()._reorder_linear_weight(plain.weight.detach(), ROWS_HINT)
        self.version = plain.weight._version

    def forward(self, x: Tensor) -> Tensor:
        """`x W^T + b`; plainly for no rows, with gradients, elsewhere, or once the weight was changed."""
        changed = self.weight._version != self.version or self.weight.dtype != torch.float32
        other = x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0
        if torch.is_grad_enabled() or changed or other:
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, self.in_features)
        out: Tensor = _ops()._linear_pointwise(flat, self.packed, self.bias, "none", [], "")
        return out.view(*x.shape[:-1], self.out_features)


def _ops() -> Any:
    return torch.ops.mkldnn


def can_pack(model: nn.Module) -> bool:
    """Whether the kernels are there for a model, and memory for a second copy of its large weights."""
    large = _large(model)
    fitting = all(m.weight.device.type == "cpu" and m.weight.dtype == torch.float32 for m in large)
    if not (large and fitting):
        return False
    if not (hasattr(_ops(), "_linear_pointwise") and hasattr(_ops(), "_reorder_linear_weight")):
        return False
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return False
    return sum(m.weight.nbytes for m in large) < free // 2


def pack_weights(model: nn.Module) -> int:
    """Pack every large linear layer in place; the bytes that it took."""
    large = {id(m) for m in _large(model)}
    taken = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if id(child) in large and isinstance(child, nn.Linear):
                packed = PackedLinear(child)
                setattr(parent, name, packed)
                taken += child.weight.nbytes
    return taken


def _large(model: nn.Module) -> list[nn.Linear]:
    """Linear layers worth packing that are not packed yet (or were before their weight changed)."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and module.weight.numel() >= LEAST_ELEMENTS
        and not (isinstance(module, PackedLinear) and module.weight._version == module.version)
    ]
