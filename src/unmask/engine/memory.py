"""The memory that a decode needs, computed from the spec of a model before its weights are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.engine.kv_budget import free_bytes
from unmask.engine.lm_head import HEAD_CHUNK
from unmask.errors import ConfigError
from unmask.knobs import whole
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer

LOGIT_COPIES = 3
"""Float32 copies of a chunk of logits that are alive at once, in the LM head and the sampler."""


@dataclass(frozen=True)
class Shape:
    """The size of a decode: rows in a forward, and positions of prompt and answer."""

    batch: int = 1
    prompt_length: int = 256
    gen_length: int = 128

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes below 1."""
        for name in ("batch", "prompt_length", "gen_length"):
            whole(name, getattr(self, name), 1)

    @property
    def positions(self) -> int:
        """Positions of one row."""
        return self.prompt_length + self.gen_length


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a decode by use; `kv` is 0 without a cache."""

    weights: int
    kv: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All bytes; activations and logits are not alive together."""
        return self.weights + self.kv + max(self.activations, self.logits)


def num_parameters(spec: ModelSpec) -> int:
    """Return the number of parameters of a network, tied ones once, without allocating them."""
    with torch.device("meta"):
        return sum(value.numel() for value in Transformer(spec).parameters())


def memory_need(
    spec: ModelSpec, shape: Shape, dtype: torch.dtype, *, has_cache: bool
) -> MemoryNeed:
    """Return the bytes of a decode in which every position is computed, as in the first forward.

    Raises ConfigError for more positions than the model's context.
    """
    if shape.positions > spec.max_length:
        raise ConfigError(
            f"prompt_length={shape.prompt_length} + gen_length={shape.gen_length} = {shape.positions}, "
            f"but the model's context is {spec.max_length}; lower one of them"
        )
    size = dtype.itemsize
    queries = shape.batch * shape.positions
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    experts = spec.experts
    width = spec.d_ff if experts is None else experts.num_chosen * experts.d_ff + experts.d_shared
    activations = queries * size * (4 * spec.d_model + max(heads, 3 * width))
    rows = min(shape.batch * shape.gen_length, max(1, HEAD_CHUNK // spec.vocab_size))
    kv = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * queries * size
    return MemoryNeed(
        weights=num_parameters(spec) * size,
        kv=kv if has_cache else 0,
        activations=activations,
        logits=LOGIT_COPIES * rows * spec.vocab_size * 4,
    )


def largest_batch(
    spec: ModelSpec, shape: Shape, dtype: torch.dtype, room: int, *, has_cache: bool
) -> int:
    """Return the largest number of rows whose decode fits into `room` bytes; 0: not even one row."""

    def fits(batch: int) -> bool:
        rows = Shape(batch, shape.prompt_length, shape.gen_length)
        return memory_need(spec, rows, dtype, has_cache=has_cache).total <= room

    low, high = 0, 1
    while fits(high) and high < 1 << 16:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that a new process can have; on Linux, caches of files count as free."""
    if device.type == "cpu":
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                for line in file:
                    if line.startswith("MemAvailable:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            return free_bytes(device)
    return free_bytes(device)
