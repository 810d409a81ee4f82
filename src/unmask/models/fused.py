"""Linear layers with one input as one product: query, key and value; gate and up.

On a GPU a product with few rows takes as long as its launch, so fewer products are faster. On a CPU the
same is done with one packed matrix, see `packed_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fused(Protocol):
    """The product of several linear layers with one input."""

    def fits(self, x: Tensor, *layers: nn.Module) -> bool:
        """Return True if it gives the results of these layers for the input `x`, and gradients are off."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layers' outputs side by side."""
        ...


class FusedLinear:
    """One matrix of several linear layers, of which their parameters become slices.

    So no memory is added, the layers go on to work alone, and a change of their weights in place changes
    both. A parameter or layer that was replaced since makes `fits` False.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        start = 0
        for layer in layers:
            own = slice(start, start + layer.out_features)
            layer.weight = nn.Parameter(self.weight[own], requires_grad=False)
            if self.bias is not None:
                layer.bias = nn.Parameter(self.bias[own], requires_grad=False)
            start = own.stop
        self._parts = [(layer, layer.weight, layer.bias) for layer in layers]

    def fits(self, x: Tensor, *layers: nn.Module) -> bool:
        """Return True if these are the fused layers with their parameters, and gradients are off."""
        return not torch.is_grad_enabled() and all(
            layer is own and own.weight is weight and own.bias is bias
            for layer, (own, weight, bias) in zip(layers, self._parts, strict=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layers' outputs side by side."""
        return F.linear(x, self.weight, self.bias)


def can_fuse(layers: Sequence[nn.Module]) -> bool:
    """Return True for plain linear layers, all with a bias or none."""
    return (
        all(type(layer) is nn.Linear for layer in layers)
        and len({layer.bias is None for layer in layers}) == 1
    )
