"""Copies of weights, packed in the layout of the CPU's matrix kernels.

The time of a product with few rows is that of reading the weights, and the plain kernels pack them anew in
each call: on two AVX2 cores, 17 rows times a 126464 x 1024 head take 95 ms, with packed weights 26 ms. A
layer of 64 experts of 1024 x 512, 8 per token, takes 0.7 of its time for 32 tokens and 0.94 for 8, but 1.14
for one, so a single row is multiplied with the plain weights (medians of 11 alternating runs, one thread,
on a machine with other load). In bfloat16 the copies give the same bits as the weights themselves, 1.3 to 2.5
times as fast for up to 32 rows (`benchmarks/packed_weights.py`).

The kernels are compiled for one number of rows, take half a megabyte each, and are never given back to the
system. The rows of a product are therefore padded to one of `RUNGS`, and large products are cut into pieces
of the highest one. 1,600 numbers of rows of a matrix of 768 x 256 add 31 MB then, and 1,016 MB without.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.experts import Stack

if TYPE_CHECKING:
    from torch._ops import _OpNamespace

LEAST_ELEMENTS = 1 << 16
"""Smallest matrix that is packed. On two AVX512 cores, 43 rows times 768 x 256 or 256 x 256 take 0.6 of the
time of plain weights, 512 rows 0.8 and 0.9."""
ROWS_HINT = 32
"""Number of rows for which the kernels choose the layout; any number can be multiplied."""
EXPERT_ROWS_HINT = 8
"""The same for an expert, which processes a part of the rows."""
LEAST_EXPERT_ROWS = 2
"""Smallest number of rows for which an expert's packed copy is faster."""
RUNGS = (*range(1, 8), *(rows << k for k in range(5) for rows in (8, 10, 12, 14)), 256)
"""Numbers of rows that packed products are computed for; padding adds less than a quarter to a product."""


class PackedLinear(nn.Linear):
    """A linear layer's parameters and their packed copy, which is used when gradients are off."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta", bias=False)
        self.weight, self.bias = plain.weight, plain.bias
        self.packed: Tensor = _ops()._reorder_linear_weight(plain.weight.detach(), ROWS_HINT)
        self.version = plain.weight._version

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b`; unpacked for no rows, with gradients, off the CPU or once `W` changed."""
        if not _is_usable(self.weight, self.version, self.packed, x):
            return F.linear(x, self.weight, self.bias)
        out = _times(x.reshape(-1, self.in_features), self.packed, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


class PackedStack(Stack):
    """A plain stack's matrices and a packed copy of each, used when gradients are off."""

    def __init__(self, plain: Stack) -> None:
        nn.Module.__init__(self)
        self.weight = plain.weight
        weight = plain.weight.detach()
        self.packed = [_ops()._reorder_linear_weight(one, EXPERT_ROWS_HINT) for one in weight]
        self.version = plain.weight._version

    def times(self, expert: int, x: Tensor) -> Tensor:
        """Compute `x W^T` with one expert's matrix; unpacked for a single row and as in `PackedLinear`."""
        packed = self.packed[expert]
        if len(x) < LEAST_EXPERT_ROWS or not _is_usable(self.weight, self.version, packed, x):
            return super().times(expert, x)
        return _times(x, packed, None)


def _times(x_ND: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x W^T + b` of at least one row with a packed matrix, in pieces of `RUNGS` rows."""
    highest = RUNGS[-1]
    first = _piece(x_ND[:highest], packed, bias)
    if len(x_ND) <= highest:
        return first
    out = first.new_empty(len(x_ND), first.shape[1])
    out[:highest] = first
    for start in range(highest, len(x_ND), highest):
        out[start : start + highest] = _piece(x_ND[start : start + highest], packed, bias)
    return out


def _piece(x_ND: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x W^T + b` of at most `RUNGS[-1]` rows, with rows of zeros up to the next rung."""
    count = len(x_ND)
    missing = RUNGS[bisect_left(RUNGS, count)] - count
    if missing:
        x_ND = F.pad(x_ND, (0, 0, 0, missing))
    out: Tensor = _ops()._linear_pointwise(x_ND, packed, bias, "none", [], "")
    return out[:count] if missing else out


def _is_usable(weight: Tensor, version: int, packed: Tensor, x: Tensor) -> bool:
    """Return True if the packed copy is up to date and can multiply `x`."""
    changed = weight._version != version or weight.dtype != packed.dtype
    other = x.dtype != packed.dtype or x.device.type != "cpu" or x.numel() == 0
    return not (torch.is_grad_enabled() or changed or other)


def _ops() -> _OpNamespace:
    return torch.ops.mkldnn


def packable_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes of weights that this PyTorch has packed products for on this CPU.

    float16 is none of them: few CPUs multiply it, and a model in it is loaded as float32 there.
    """
    if not (hasattr(_ops(), "_linear_pointwise") and hasattr(_ops(), "_reorder_linear_weight")):
        return ()
    has_bfloat16 = getattr(_ops(), "_is_mkldnn_bf16_supported", lambda: False)
    return (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,)


def can_pack(model: nn.Module) -> bool:
    """Return True if kernels exist for a model and memory for a second copy of its large weights."""
    large, dtypes = _large(model), packable_dtypes()
    fitting = all(m.weight.device.type == "cpu" and m.weight.dtype in dtypes for m in large)
    if not (large and fitting):
        return False
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return False
    return sum(m.weight.nbytes for m in large) < free // 2


def pack_weights(model: nn.Module) -> int:
    """Pack every large linear layer and stack of experts in place; return the bytes of the copies."""
    large = {id(m) for m in _large(model)}
    size_bytes = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if id(child) not in large or not isinstance(child, (nn.Linear, Stack)):
                continue
            packed = PackedStack(child) if isinstance(child, Stack) else PackedLinear(child)
            setattr(parent, name, packed)
            size_bytes += child.weight.nbytes
    return size_bytes


def _large(model: nn.Module) -> list[nn.Linear | Stack]:
    """Return the layers worth packing that are not packed yet, or whose weight changed since."""
    return [
        module
        for module in model.modules()
        if isinstance(module, (nn.Linear, Stack))
        and module.weight.numel() >= LEAST_ELEMENTS
        and not (
            isinstance(module, (PackedLinear, PackedStack))
            and module.weight._version == module.version
        )
    ]
