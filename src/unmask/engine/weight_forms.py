"""The form in which a model's weights are multiplied: quantized, packed for the CPU, or fused."""

from __future__ import annotations

from unmask.errors import ConfigError
from unmask.models.packed_weights import can_pack, packable_dtypes
from unmask.models.packed_weights import pack_weights as pack
from unmask.models.quantize import quantize_weights
from unmask.models.transformer import Transformer, fuse_products


def prepare_weights(
    model: Transformer, quantization: str | None, pack_weights: bool | None, *, is_loaded: bool
) -> None:
    """Quantize, pack or fuse the weights, in place. Raises ConfigError for a form that they cannot have.

    Products are fused off the CPU, and only if the model `is_loaded` from a checkpoint: a network from
    Python keeps its parameters, which an optimizer may know.
    """
    if quantization is not None:
        is_whole = quantization == "int8-dynamic"  # the head alone is left to pack
        if pack_weights and not is_whole:
            raise ConfigError(f"pack_weights=True has no kernels for quantization={quantization!r}")
        quantize_weights(model, quantization)
        if not is_whole:
            return
    packable = pack_weights is not False and can_pack(model)
    if pack_weights and not packable:
        names = [str(dtype).removeprefix("torch.") for dtype in (model.dtype, *packable_dtypes())]
        raise ConfigError(
            f"pack_weights=True cannot pack this model's {names[0]} weights on {model.device.type}: it "
            "needs large weights on the CPU in a dtype with packed kernels (here "
            f"{' or '.join(names[1:]) or 'none'}), and free memory of twice their size; choose such a "
            "dtype, or leave pack_weights out"
        )
    if packable:
        pack(model)
    elif is_loaded and model.device.type != "cpu":
        fuse_products(model)
