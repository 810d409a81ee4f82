"""Quantization to 8 or 4 bits: of the weights alone, through torchao, or of whole products.

int8 and int4 round the weights, and products are computed in the model's dtype; int8-dynamic multiplies
8-bit integers (`int8_linear`). Source of the former: torchao's Int8WeightOnlyConfig (each row of a matrix
is rounded to int8 with its own scale) and its prototype PrototypeInt4WeightOnlyConfig (every 32 numbers of
a row to 4 bits with their own scale and zero point). The embedding and the head are not quantized: the
choice of tokens depends on small differences there. On a CPU rounded weights save memory, not time, and
8-bit products both: `unmask bench quantize` measures them. int4 is for bfloat16 on a CPU; PyTorch's 4-bit
product has no fast float32 kernel (32 rows times 4096 x 1024: 1192 ms, plain 36), and torchao's other 4-bit
formats need packages or devices that we could not test (`docs/log.md`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unmask.errors import ConfigError, DependencyError, unknown_name
from unmask.models.int8_linear import Int8Linear, can_multiply, use_int8_products
from unmask.models.transformer import Transformer

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

KINDS = ("int8", "int8-dynamic", "int4")
NOT_QUANTIZED = "lm_head"
GROUP = 32
"""Numbers of a row that share a scale in 4 bits; the input width of a layer must be a multiple."""
ROWS = 16
"""Outputs that the 4-bit kernel computes together; the output width must be a multiple."""


def quantize_weights(model: Transformer, kind: str) -> int:
    """Quantize the linear layers of the blocks in place; return the bytes of all weights afterwards.

    Each plain weight stays until it is replaced: the peak of memory is that of the plain model. Raises
    ConfigError (kind; a model with experts; int8-dynamic off the CPU; int4 in another dtype, on another
    device or with widths that are no multiples) and DependencyError (no torchao, or one without the
    format).
    """
    if kind not in KINDS:
        raise unknown_name("quantize", kind, KINDS)
    if model.spec.experts is not None:
        raise ConfigError(
            f"quantization={kind!r} does not quantize experts, which have most weights of "
            f"{model.spec.family}; leave it out, or use dtype='bfloat16'"
        )
    if kind == "int8-dynamic":
        _check_int8_dynamic(model)
        use_int8_products(model, NOT_QUANTIZED)
        return weight_bytes(model)
    if kind == "int4":
        _check_int4(model)
    try:
        with _quiet():
            from torchao.quantization import quantize_

            config = _config(kind)
    except ImportError as error:
        raise DependencyError(
            f"quantization={kind!r} needs torchao ({error}); install it with: "
            "pip install 'unmask[quantize]'"
        ) from None
    quantize_(model, config, filter_fn=_is_quantized)
    return weight_bytes(model)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights, scales of quantized ones included."""
    whole = [module.num_bytes for module in model.modules() if isinstance(module, Int8Linear)]
    return sum(_bytes(value) for value in model.parameters()) + sum(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log: on import, torchao warns about optional GPU libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _config(kind: str) -> AOBaseConfig:
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig()
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)


def _is_quantized(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name != NOT_QUANTIZED


def _check_int8_dynamic(model: Transformer) -> None:
    where = model.device.type
    if where == "cpu" and can_multiply():
        return
    has_none = "this one or this PyTorch has none" if where == "cpu" else f"not {where}"
    raise ConfigError(
        f"quantization='int8-dynamic' takes 8-bit products of a CPU with VNNI, {has_none}; use "
        f"quantization='int8'"
    )


def _check_int4(model: Transformer) -> None:
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        kind = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"quantization='int4' with {kind} weights on {model.device.type}: only bfloat16 on a CPU has a "
            f"usable 4-bit product; use dtype='bfloat16' and device='cpu', or quantization='int8'"
        )
    for name, module in model.named_modules():
        if not (isinstance(module, nn.Linear) and _is_quantized(module, name)):
            continue
        if module.in_features % GROUP or module.out_features % ROWS:
            raise ConfigError(
                f"quantization='int4': {name} takes {module.in_features} numbers and returns "
                f"{module.out_features}, which must be multiples of {GROUP} and {ROWS}; use "
                "quantization='int8'"
            )


def _bytes(value: Tensor) -> int:
    parts: list[Tensor] = [getattr(value, name) for name in getattr(value, "tensor_data_names", ())]
    return sum(part.nbytes for part in parts) if parts else value.nbytes
