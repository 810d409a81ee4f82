"""Sizes and limits of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unmask.options import check_fields, option

MAX_LORAS, MAX_LORA_RANK = 16, 64
"""Default limits of the number of adapters of a model, and of the rank of each."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes and limits of an engine, as keywords and as flags of `unmask serve`."""

    max_num_seqs: Annotated[int, option("--max-running-requests", least=1)] = 16
    """Maximum number of sequences in a forward pass; a guided request counts twice."""

    max_queue: Annotated[int, option("--max-queued-requests", least=1)] = 256
    """Maximum number of waiting requests."""

    max_num_batched_tokens: Annotated[int, option(least=1)] = 8192
    """Approximate number of positions in a forward pass; longer prompts are split."""

    max_wait: Annotated[float, option(above=0, metavar="S")] = 2.0
    """Seconds that a request that does not fit may be overtaken by smaller ones."""

    steps_per_round: Annotated[int, option(least=1)] = 1
    """Forward passes between visits to the queue; more save host work, delay starts and ends."""

    kv_cache_memory_bytes: Annotated[int | None, option(least=1)] = None
    """Bytes for keys and values. Default: twice what all sequences need, at most half of what is free."""

    enable_prefix_caching: bool = True
    """Share full blocks of prompts with equal beginnings (block-causal models)."""

    cuda_graphs: Annotated[bool, option(show=False)] = True
    """Capture steps of fixed shapes as CUDA graphs; without effect elsewhere."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def window(self) -> int:
        """The number of sequences of one call that are in the engine at once, where a call has many."""
        return min(self.max_num_seqs, self.max_queue)
