"""The memory budget of an engine for keys and values."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from unmask.errors import ConfigError
from unmask.knobs import whole
from unmask.kv.paged_store import PagedStore
from unmask.models.transformer import Transformer

PAGED_SHARE = 0.75
"""Share of the budget for pages, on a block-causal model; the rest is for dense rows."""


@dataclass(frozen=True, slots=True)
class KVBudget:
    """The number of pages (0 unless the model is block-causal), and the bytes for dense rows."""

    num_pages: int
    dense_bytes: int

    @classmethod
    def of(cls, model: Transformer, max_num_seqs: int, kv_bytes: int | None) -> KVBudget:
        """Split `kv_bytes` bytes; raise ConfigError if there is no room for a page and page 0.

        None: twice the size of `max_num_seqs` full contexts, at most half of the free memory.
        """
        spec = model.part
        position = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * model.dtype.itemsize
        if kv_bytes is None:
            kv_bytes = 2 * max_num_seqs * spec.max_length * position
            free = free_bytes(model.device)
            kv_bytes = kv_bytes if free is None else min(kv_bytes, free // 2)
        kv_bytes = whole("kv_cache_memory_bytes", kv_bytes, 0)
        if spec.block_size is None:
            return cls(0, kv_bytes)
        page = PagedStore.page_bytes(spec, model.dtype)
        num_pages = min(int(PAGED_SHARE * kv_bytes) // page, kv_bytes // page - 1)
        if num_pages < 1:
            raise ConfigError(
                f"kv_cache_memory_bytes={kv_bytes} holds no page of {page} bytes beside one for padding; "
                f"use {2 * page} or more"
            )
        return cls(num_pages, kv_bytes - (num_pages + 1) * page)


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes, None if it cannot be determined."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
