"""The only place where keys and values live: preallocated, written in place, keys already rotated.

Source: storing rotated keys equals rotating stored ones (arXiv:2104.09864, RoPE acts on each key alone).

Letters: B rows, G key/value heads, T slots, Q queries, A head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.models.spec import ModelSpec


class Store:
    """`(rows, G, slots + 1, A)` keys and values a layer; the last slot takes padding's writes."""

    def __init__(
        self, spec: ModelSpec, rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (rows, spec.num_kv_heads, slots + 1, spec.head_dim)
        self.slots = slots
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]

    def move_row(self, source: int, target: int) -> None:
        """Copy one row over another (a finished one)."""
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]


class StoreView:
    """What one forward sees of a store: rows `[0, B)`, slots `[0, length)`.

    `slots_BQ` says where each query's key and value go. Queries that are one contiguous range, the same
    in every row, are written as a slice. Queries beyond those are extra: they are seen in this forward,
    after the slots, and never kept.
    """

    def __init__(
        self, store: Store, slots_BQ: Tensor, length: int, contiguous: slice | None
    ) -> None:
        self.store, self.slots_BQ, self.length, self.contiguous = (
            store,
            slots_BQ,
            length,
            contiguous,
        )
        self.rows = slots_BQ.shape[0]
        self.row_index = torch.arange(self.rows, device=slots_BQ.device)[:, None]

    def update(self, layer: int, k_BQGA: Tensor, v_BQGA: Tensor) -> tuple[Tensor, Tensor]:
        """Write the queries' keys and values; give all of `[0, length)`, then the extra ones."""
        out = []
        kept = self.slots_BQ.shape[1]
        for stored, all_ in ((self.store.keys[layer], k_BQGA), (self.store.values[layer], v_BQGA)):
            new, extra = all_[:, :kept], all_[:, kept:]
            if self.contiguous is not None:
                stored[: self.rows, :, self.contiguous] = new.transpose(1, 2)
            else:
                stored[self.row_index, :, self.slots_BQ] = new
            seen = stored[: self.rows, :, : self.length]
            out.append(torch.cat((seen, extra.transpose(1, 2)), dim=2) if extra.shape[1] else seen)
        return out[0], out[1]
