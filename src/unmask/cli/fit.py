"""`unmask inspect --fit` and the memory columns of `unmask models`."""

from __future__ import annotations

from unmask.cli.fit_options import FitOptions
from unmask.engine.memory import (
    MemoryNeed,
    Shape,
    available_bytes,
    largest_batch,
    memory_need,
    num_parameters,
)
from unmask.models import torch_device, torch_dtype
from unmask.models.spec import ModelSpec


def facts_of_fit(spec: ModelSpec, options: FitOptions) -> dict[str, object]:
    """Return the memory of a decode, by use, and whether it fits. Raises ConfigError."""
    from unmask.caches.registry import make_cache

    device = torch_device(options.device)
    dtype = torch_dtype(options.dtype, device)
    has_cache = make_cache(options.cache or "none").stores
    shape = Shape(options.batch or 1, options.prompt_length or 256, options.gen_length or 128)
    need = memory_need(spec, shape, dtype, has_cache=has_cache)
    room = available_bytes(device)
    facts: dict[str, object] = {
        "decode": f"{shape.batch} rows of {shape.prompt_length} + {shape.gen_length} positions, "
        f"{str(dtype).removeprefix('torch.')} on {device}",
        "memory_weights": need.weights,
        "memory_kv": need.kv,
        "memory_activations": need.activations,
        "memory_logits": need.logits,
        "memory_total": need.total,
        "memory_available": room,
        "fits": None if room is None else need.total <= room,
    }
    if room is not None:
        facts["largest_batch"] = largest_batch(spec, shape, dtype, room, has_cache=has_cache)
    return facts


def sizes(spec: ModelSpec) -> tuple[int, MemoryNeed, bool | None]:
    """Return parameters, the memory of one row in the default dtype and place, and whether it fits."""
    device = torch_device(None)
    length = min(256, spec.max_length // 2)
    shape = Shape(1, length, min(128, spec.max_length - length))
    need = memory_need(spec, shape, torch_dtype(None, device), has_cache=False)
    room = available_bytes(device)
    return num_parameters(spec), need, None if room is None else need.total <= room


def gigabytes(size: int) -> str:
    """Return a size as text, such as "15.3 GB" or "24.5 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
