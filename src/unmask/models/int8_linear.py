"""Linear layers whose products are of 8-bit integers, on the CPU.

Each row of the weights is rounded to int8 with its own scale when the model is loaded, and each row of the
input with its own one at every call (dynamic quantization, W8A8). The sums of integers are exact, so that a
row never depends on its neighbours, in any dtype. Against packed bfloat16 products, on an AVX512 CPU with
VNNI: 1.3 to 1.8 times as fast at width 4096 for 1 to 256 rows, 0.9 to 1.5 times at width 1024 (a call costs
0.2 ms), with an error of 0.01 of the result in place of 0.0017 (`benchmarks/packed_weights.py int8`).

The weights take half the memory of bfloat16, and there is no second copy of them.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from unmask.models.packed_weights import in_pieces

HIGHEST = 127
"""Largest absolute value of a rounded number."""
ZERO_POINT = 128
"""What is added to the input's rounded numbers, since the kernels take unsigned ones."""
LEAST_SCALE = 1e-30
"""Scale of a row of zeros."""


class Int8Linear(nn.Module):
    """The 8-bit form of a linear layer; for decoding: there are no gradients."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        scales = _scales(plain.weight)
        whole = (plain.weight.detach() / scales).round_().to(torch.int8)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        self.scales = scales.flatten()
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)

    @property
    def num_bytes(self) -> int:
        """Size of the rounded weights and their scales; the bias is a parameter."""
        return self.in_features * self.out_features + self.scales.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b` in the dtype of `x` `(..., in)`."""
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        x_ND = x.reshape(-1, self.in_features)
        scales = _scales(x_ND)
        whole = (x_ND / scales).round_().add_(ZERO_POINT).to(torch.uint8)
        exact = in_pieces(whole, self.in_features * self.out_features, self._multiply)
        out = torch.empty(exact.shape, dtype=x.dtype)
        if self.bias is None:
            torch.mul(exact, scales, out=out)
        else:
            torch.addcmul(self.bias.detach(), exact, scales, out=out)
        return out.view(*x.shape[:-1], self.out_features)

    def _multiply(self, whole: Tensor) -> Tensor:
        """Multiply the input's whole numbers with the weights; float32."""
        weight, nothing = (self.packed, self.scales, self.zeros), ("none", list[float](), "")
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, ZERO_POINT, *weight, None, 1.0, 0, torch.float32, *nothing
        )
        return product


@cache
def can_multiply() -> bool:
    """Return whether this PyTorch has 8-bit products, and this CPU exact ones.

    Without VNNI, pairs of products saturate at 16 bits.
    """
    ops = torch.ops.onednn
    if not (hasattr(ops, "qlinear_pointwise") and hasattr(ops, "qlinear_prepack")):
        return False
    # Without initial values, which would take random numbers of the caller.
    plain = nn.utils.skip_init(nn.Linear, 64, 16, bias=False)  # type: ignore[no-untyped-call]
    nn.init.ones_(plain.weight)
    return bool((Int8Linear(plain)(torch.ones(1, 64)) - 64.0).abs().max() < 1.0)


def use_int8_products(model: nn.Module, skipped: str) -> None:
    """Replace the linear layers of a model in place, except for attributes of the name `skipped`."""
    # No list holds the plain layers: the memory of each is free as soon as it is replaced.
    for parent in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, _ in parent.named_children() if name != skipped]:
            if isinstance(child := getattr(parent, name), nn.Linear):
                setattr(parent, name, Int8Linear(child))
            del child


def _scales(rows_ND: Tensor) -> Tensor:
    """Return the scale `(N, 1)` of each row, float32: its largest absolute value is `HIGHEST` of them."""
    largest = rows_ND.detach().abs().amax(dim=-1, keepdim=True).float()
    return largest.div_(HIGHEST).clamp_(min=LEAST_SCALE)
