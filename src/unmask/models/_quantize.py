"""Weights in 8 bits, computed in the model's dtype: half of bfloat16's memory, through torchao.

Source: torchao's Int8WeightOnlyConfig: each row of a matrix is rounded to int8 with a scale of its own.
The embedding and the head keep their type, for the choice of tokens hangs on small differences there. The
gain is memory, not time: on one CPU thread, 32 positions took 2.1 times as long as in float32 and 1.3
times as long as in bfloat16.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from unmask.errors import ConfigError, DependencyError
from unmask.models._transformer import Transformer

KINDS = ("int8",)


def quantize_weights(model: Transformer, kind: str) -> int:
    """Quantize the linear layers of the blocks in place; the bytes that all weights have then.

    The plain weights are there until each is replaced: the peak is theirs. Raises ConfigError (kind, a
    model with experts, which are no linear layers to torchao) and DependencyError (no torchao).
    """
    if kind not in KINDS:
        raise ConfigError(
            f"quantize={kind!r} is not supported; allowed: int8 (torchao computes int4 on some GPUs "
            f"only); leave it out for the plain weights"
        )
    if model.spec.experts is not None:
        raise ConfigError(
            f"quantize={kind!r} would leave the experts of {model.spec.family} as they are, and most "
            f"weights are theirs; leave it out, or use dtype='bfloat16'"
        )
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise DependencyError(
            f"quantize={kind!r} needs torchao ({error}); install it with: pip install 'unmask[quantize]'"
        ) from None
    quantize_(
        model,
        Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "lm_head",
    )
    return sum(_bytes(value) for value in model.parameters())


def _bytes(value: Any) -> int:
    parts = [getattr(value, name) for name in getattr(value, "tensor_data_names", ())]
    return sum(part.nbytes for part in parts) if parts else int(value.nbytes)
