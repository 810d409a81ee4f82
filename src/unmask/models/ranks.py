"""The processes that hold one model together: each has some heads and a part of every feed-forward's width.

What a rank computes of a block's output is a summand; the block adds them up, so that states are the same
on all ranks.

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
    """Which of `size` processes this is; `group` is how they talk, None for one alone."""

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    def sum(self, summand: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place and without gradients. Raises WorkerError."""
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
    """The error for a rank that does not answer."""
    reason = str(error).strip().splitlines()[0]
    return WorkerError(
        f"rank {rank} lost another rank of its model ({reason}); see that rank's own error, start all again"
    )


def part_of(spec: ModelSpec, size: int) -> ModelSpec:
    """What each of `size` ranks holds: the same network with fewer heads and narrower feed-forwards.

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
        most = gcd(*counts.values())
        fitting = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
        raise ConfigError(
            f"tensor_parallel_size={size} does not divide {' or '.join(uneven)} of this model; "
            f"allowed: {fitting}"
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
