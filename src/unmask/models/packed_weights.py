"""Copies of weights, packed in the layout of the CPU's matrix kernels.

The time of a product with few rows is that of reading the weights, and the plain kernels pack them anew in
each call: on two AVX2 cores, 17 rows times a 126464 x 1024 head take 95 ms, with packed weights 26 ms. A
layer of 64 experts of 1024 x 512, 8 per token, takes 0.7 of its time for 32 tokens and 0.94 for 8, but 1.14
for one, so a single row is multiplied with the plain weights (medians of 11 alternating runs, one thread,
on a machine with other load). In bfloat16 a product with packed weights is 1.2 to 2.2 times as fast for up
to 32 rows, and has the same bits on the CPU that it was measured on (`benchmarks/packed_weights.py`).

The kernels are compiled for one number of rows, take half a megabyte each, and are never given back to the
system. The rows of a product are therefore padded to one of a few, and large products are cut into pieces
of the highest one. 1,600 numbers of rows of a matrix of 768 x 256 add 16 MB then, and 1,016 MB without.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.experts import Stack
from unmask.models.transformer import products_of_one_input

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
RUNGS = (*range(1, 8), *(rows << k for k in range(6) for rows in (8, 10, 12, 14)), 512)
"""Numbers of rows that products with large matrices are computed for; padding adds at most a quarter."""
FEW_RUNGS = (1, 2, *(rows << k for k in range(6) for rows in (4, 6)), 256)
"""The same for matrices below `MANY_RUNGS_ELEMENTS`, whose products take less than the rest of a layer: the
kernels of a small model would take more memory than its weights. Padding adds at most a half."""
MANY_RUNGS_ELEMENTS = 1 << 20


class PackedLinear(nn.Linear):
    """A linear layer's parameters and their packed copy, which is used when gradients are off.

    With `is_lazy`, the copy is made when the layer is first used alone: it is a part of a `PackedGroup`.
    """

    def __init__(self, plain: nn.Linear, *, is_lazy: bool = False) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta", bias=False)
        self.weight, self.bias = plain.weight, plain.bias
        self.version = plain.weight._version
        self.packed: Tensor | None = None if is_lazy else _pack(plain.weight, ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b`; unpacked with gradients, off the CPU, once `W` changed, and for no rows."""
        parameters = self._parameters  # read twice as fast as the attributes
        weight, bias = parameters["weight"], parameters["bias"]
        assert weight is not None, "a linear layer has a weight"
        if not _is_usable(weight, self.version, x):
            return F.linear(x, weight, bias)
        if self.packed is None:
            self.packed = _pack(weight, ROWS_HINT)
        if self.packed.dtype != weight.dtype:
            return F.linear(x, weight, bias)
        return _times(x, self.packed, bias)


class PackedGroup:
    """The packed matrix of several layers with one input, in place of a packed copy of each.

    It is used while they are the same layers with the same weights; their parameters stay their own.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.packed = _pack(torch.cat([layer.weight.detach() for layer in layers]), ROWS_HINT)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        own = [
            [each for each in (layer.weight, layer.bias) if each is not None] for layer in layers
        ]
        self._layers = tuple(layers)
        self._parameters = tuple((each, each._version) for part in own for each in part)

    def fits(self, x: Tensor, *layers: nn.Module) -> bool:
        """Return True if these are the layers, unchanged, and the packed matrix can multiply `x`."""
        dtype = self.packed.dtype
        if layers != self._layers or x.dtype != dtype or torch.is_grad_enabled():
            return False
        held = [value for layer in self._layers for value in layer._parameters.values()]
        found = [value for value in held if value is not None]
        same = all(
            value is own and own._version == version and own.dtype == dtype
            for value, (own, version) in zip(found, self._parameters, strict=False)
        )
        return same and len(found) == len(self._parameters) and x.is_cpu and x.numel() > 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layers' outputs side by side."""
        return _times(x, self.packed, self.bias)


class PackedStack(Stack):
    """A plain stack's matrices and a packed copy of each, used when gradients are off."""

    def __init__(self, plain: Stack) -> None:
        nn.Module.__init__(self)
        self.weight = plain.weight
        weight = plain.weight.detach()
        self.packed = [_pack(one, EXPERT_ROWS_HINT) for one in weight]
        self.version = plain.weight._version

    def times(self, expert: int, x: Tensor) -> Tensor:
        """Compute `x W^T` with one expert's matrix; unpacked for a single row and as in `PackedLinear`."""
        packed = self.packed[expert]
        is_usable = _is_usable(self.weight, self.version, x) and packed.dtype == x.dtype
        if len(x) < LEAST_EXPERT_ROWS or not is_usable:
            return super().times(expert, x)
        return _times(x, packed, None)


def _pack(weight: Tensor, rows_hint: int) -> Tensor:
    """Return a packed copy of a matrix for about so many rows."""
    packed: Tensor = _ops()._reorder_linear_weight(weight.detach(), rows_hint)
    return packed


def _times(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x W^T + b` of at least one row with a packed matrix."""
    x_ND = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    multiply = _ops()._linear_pointwise
    out = in_pieces(x_ND, packed.numel(), lambda part: multiply(part, packed, bias, "none", [], ""))
    return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[1])


def in_pieces(x_ND: Tensor, num_elements: int, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `multiply(x)`, a product of at least one row with a matrix of so many numbers.

    The rows are multiplied in pieces of the highest rung, with rows of zeros up to the next one.
    """
    rungs = RUNGS if num_elements >= MANY_RUNGS_ELEMENTS else FEW_RUNGS
    count, highest = x_ND.shape[0], rungs[-1]
    if count <= highest:
        return _piece(x_ND, count, rungs, multiply)
    first = multiply(x_ND[:highest])
    out = first.new_empty(count, first.shape[1])
    out[:highest] = first
    for start in range(highest, count, highest):
        part = x_ND[start : start + highest]
        out[start : start + highest] = _piece(part, len(part), rungs, multiply)
    return out


def _piece(
    x_ND: Tensor, count: int, rungs: tuple[int, ...], multiply: Callable[[Tensor], Tensor]
) -> Tensor:
    missing = rungs[bisect_left(rungs, count)] - count
    if not missing:
        return multiply(x_ND)
    return multiply(F.pad(x_ND, (0, 0, 0, missing)))[:count]


def _is_usable(weight: Tensor, version: int, x: Tensor) -> bool:
    """Return True if a packed copy of this version of `weight` can multiply `x`."""
    return (
        weight._version == version
        and x.dtype == weight.dtype
        and not torch.is_grad_enabled()
        and x.is_cpu
        and weight.is_cpu
        and x.numel() > 0
    )


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
    """Pack every large linear layer and stack of experts in place; return the bytes of the copies.

    Layers with one input are packed as one matrix, see `PackedGroup`. A copy of one of them follows, which
    is not counted, if it is used alone: adapters and the cache `dllm` do that.
    """
    found = _large(model)  # held to the end, so that no id of these is given to a new layer
    large, size_bytes = {id(module) for module in found}, 0
    for holder, layers in products_of_one_input(model):
        if not _is_group(layers) or large.isdisjoint(map(id, layers.values())):
            continue
        parts = {name: PackedLinear(layer, is_lazy=True) for name, layer in layers.items()}
        for name, part in parts.items():
            setattr(holder, name, part)
        holder.fused = PackedGroup(list(parts.values()))
        size_bytes += sum(part.weight.nbytes for part in parts.values())
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if id(child) not in large or not isinstance(child, (nn.Linear, Stack)):
                continue
            packed = PackedStack(child) if isinstance(child, Stack) else PackedLinear(child)
            setattr(parent, name, packed)
            size_bytes += child.weight.nbytes
    return size_bytes


def _is_group(layers: dict[str, nn.Module]) -> TypeGuard[dict[str, nn.Linear]]:
    """Return True for layers that can be one packed matrix: linear, alike, and none with an adapter."""
    return (
        all(type(layer) in (nn.Linear, PackedLinear) for layer in layers.values())
        and len({layer.bias is None for layer in layers.values()}) == 1
        and len({layer.weight.dtype for layer in layers.values()}) == 1
    )


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
