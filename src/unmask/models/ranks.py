"""Tensor parallelism of one model: each rank has some heads and a part of every feed-forward's width.

A rank computes one summand of a block's output; an all-reduce adds them, so that the states are the same on
all ranks.

Source: Megatron-LM, arXiv:1909.08053, Section 3: split columns, then rows, one sum for each half of a
block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING

from torch import Tensor

from unmask.errors import ConfigError, WorkerError
from unmask.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ranks:
    """This process's `rank` among `size`, and their `group`; None for a single process."""

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    def sum(self, summand: Tensor) -> Tensor:
        """Sum the ranks' tensors in place, without gradients. Raises WorkerError."""
        if self.group is None or not summand.numel():
            return summand
        from torch import distributed

        try:
            distributed.all_reduce(summand, group=self.group)
        except RuntimeError as error:
            raise lost(self.rank, error) from error
        return summand


ALONE = Ranks()


def lost(rank: int, error: Exception) -> WorkerError:
    """Build the error for a rank that does not answer."""
    reason = str(error).strip().splitlines()[0]
    return WorkerError(
        f"rank {rank} lost another rank of its model ({reason}); see that rank's error, then restart all"
    )


def part_of(spec: ModelSpec, size: int) -> ModelSpec:
    """Return the spec of one of `size` ranks: fewer heads and narrower feed-forwards.

    Raises ConfigError when a count is not a multiple of `size`.
    """
    counts = {"num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads}
    experts = spec.experts
    if experts is None or experts.dense_layers:
        counts["d_ff"] = spec.d_ff
    if experts is not None:
        counts["d_ff of an expert"] = experts.d_ff
        if experts.d_shared:
            counts["d_ff of the shared expert"] = experts.d_shared
    uneven = [f"{name}={count}" for name, count in counts.items() if count % size]
    if uneven:
        largest = gcd(*counts.values())
        divisors = ", ".join(str(n) for n in range(1, largest + 1) if largest % n == 0)
        raise ConfigError(
            f"tensor_parallel_size={size} does not divide {' or '.join(uneven)} of this model; "
            f"allowed: {divisors}"
        )
    if experts is not None:
        experts = replace(experts, d_ff=experts.d_ff // size, d_shared=experts.d_shared // size)
    return replace(
        spec,
        num_heads=spec.num_heads // size,
        num_kv_heads=spec.num_kv_heads // size,
        d_ff=spec.d_ff // size,
        experts=experts,
    )
