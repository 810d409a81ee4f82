"""Linear maps with untrained weights of 8 or 4 bits, through which gradients flow: the base of QLoRA.

Source: QLoRA, arXiv:2305.14314. Differs: its 4-bit numbers are NF4 in groups of 64 with scales that are
quantized again; here they are whole numbers, in 8 bits with one scale for each output, in 4 bits with one
for every 32 inputs. Products are computed with the weights in the type of the input, which exist while one
matrix is multiplied, in the forward pass and again in the backward pass.

torchao's weights (`quantize`) are for decoding: its 4-bit product is for bfloat16 only and has no
derivative on a CPU.

Letters: O outputs, I inputs, G groups of a row, S numbers of a group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ConfigError

BITS = {"int8": 8, "int4": 4}
GROUP = 32
"""Inputs that share a scale in 4 bits."""


class FrozenLinear(nn.Module):
    """A linear map whose weights are rounded to whole numbers and not trained; the bias stays as it is.

    Raises ConfigError for 4 bits with a number of inputs that is no multiple of `GROUP`.
    """

    codes: Tensor
    scales_OG1: Tensor

    def __init__(self, plain: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bits, self.bias = BITS[kind], plain.bias
        size = self.in_features if kind == "int8" else GROUP
        if self.in_features % size:
            raise ConfigError(
                f"lora.base={kind}: a matrix takes {self.in_features} numbers, which must be a multiple of "
                f"{GROUP}; use int8"
            )
        grouped_OGS = plain.weight.detach().float().reshape(self.out_features, -1, size)
        largest = 2 ** (self.bits - 1) - 1
        scales = grouped_OGS.abs().amax(-1, keepdim=True) / largest
        whole = (grouped_OGS / scales.clamp(min=1e-30)).round().to(torch.int8).flatten(1)
        if kind == "int4":
            low, high = whole[:, ::2] + 8, whole[:, 1::2] + 8
            whole = (low + (high << 4)).view(torch.uint8)
        self.register_buffer("codes", whole, persistent=False)
        self.register_buffer("scales_OG1", scales, persistent=False)

    @property
    def num_weights(self) -> int:
        """Number of weights that the codes stand for."""
        return self.in_features * self.out_features

    @property
    def size_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales_OG1.nbytes

    @property
    def weight(self) -> Tensor:
        """The rounded weights `(O, I)`, float32, made anew."""
        whole = self.codes
        if self.bits == 4:
            pairs = torch.stack((whole & 15, whole >> 4), -1).flatten(1)
            whole = pairs.to(torch.int8) - 8
        grouped = whole.float().view(*self.scales_OG1.shape[:2], -1)
        return (grouped * self.scales_OG1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute `x W^T + b` in the type of `x`, under autocast in its type."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        result: Tensor = _Product.apply(x.to(dtype), self)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """`x W^T` that keeps neither `x` nor `W` for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: FrozenLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.linear.weight.to(grad.dtype), None


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return an ordinary linear map of a weight, which is not trained."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
