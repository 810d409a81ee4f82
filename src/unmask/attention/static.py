"""Attention of a forward of fixed shapes: every number that changes from step to step is in a tensor.

A compiler takes such a forward as one graph, and a CUDA graph replays it, so that the host launches one
kernel in place of hundreds. The shapes are those of a `Bucket`. A row with fewer queries repeats its last
one, which writes the same keys and values twice; a row that takes no part computes the store's spare
position, which no canvas has.

Letters: B rows, n queries of each, K keys, H query heads, G key/value heads, A head width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.attention.packed import RowMeta
from unmask.attention.visibility import block_mask, canvas_mask
from unmask.canvas import Ints
from unmask.kv.dense_store import DenseStore
from unmask.models.transformer import Layer, Rotary, attention, prepare_mask

ROWS = (1, 2, 4, 8, 16, 32, 64)
QUERIES = (1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65)
"""Queries of a row: blocks of powers of two, and one more where the logits are shifted."""
LEAST_KEYS = 256
"""Keys are padded to this number times a power of two."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shapes of a forward: rows of the store, queries of each, keys that each may attend to."""

    rows: int
    queries: int
    keys: int


def bucket_of(metas: Sequence[RowMeta], num_rows: int) -> Bucket | None:
    """Return the bucket of rows of a dense store with `num_rows` rows; None if they do not suit one."""
    most = max(len(meta.positions) for meta in metas)
    if num_rows > ROWS[-1] or not 0 < most <= QUERIES[-1] or not all(map(_suits, metas)):
        return None
    keys, longest = LEAST_KEYS, max(meta.length for meta in metas)
    while keys < longest:
        keys *= 2
    return Bucket(_rung(ROWS, num_rows), _rung(QUERIES, most), keys)


def _suits(meta: RowMeta) -> bool:
    """Return whether a row has dense stored keys and nothing but queries of its canvas."""
    is_dense = meta.is_cached and meta.table is None
    return is_dense and not (len(meta.shadows) or meta.needs_weights) and len(meta.positions) > 0


def _rung(ladder: tuple[int, ...], least: int) -> int:
    return ladder[bisect_left(ladder, least)]


def numbers_of(
    bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints], spare: int
) -> np.ndarray:
    """Return what changes from step to step, int64 `(B, 2n + 1)`: ids, positions and length of each row.

    `ids[i]` are the tokens of row `metas[i]`; `spare` is a position that no canvas has.
    """
    n = bucket.queries
    numbers = np.zeros((bucket.rows, 2 * n + 1), dtype=np.int64)
    numbers[:, n : 2 * n], numbers[:, 2 * n] = spare, 1
    for meta, tokens in zip(metas, ids, strict=True):
        row, count = numbers[meta.row], len(tokens)
        row[:count], row[count:n] = tokens, tokens[-1]
        row[n : n + count], row[n + count : 2 * n] = meta.positions, meta.positions[-1]
        row[2 * n] = meta.length
    return numbers


class StaticAttention:
    """The attention backend of a forward of fixed shapes, over the first rows of a dense store."""

    def __init__(
        self,
        store: DenseStore,
        bucket: Bucket,
        positions_Bn: Tensor,
        lengths_B: Tensor,
        dtype: torch.dtype,
    ) -> None:
        spec = store.spec
        self.store, self.bucket, self.positions = store, bucket, positions_Bn
        self.num_keys = min(bucket.keys, store.positions)
        self.rows = torch.arange(bucket.rows, device=positions_Bn.device)[:, None]
        keys = torch.arange(self.num_keys, device=positions_Bn.device)
        visible = canvas_mask(lengths_B, keys).expand(-1, -1, bucket.queries, -1)
        if spec.block_size is not None:
            visible = visible & block_mask(positions_Bn, keys, spec.block_size)
        queries = torch.empty(0, dtype=dtype, device=positions_Bn.device)
        num_shared = spec.num_heads // spec.num_kv_heads
        self.mask = prepare_mask(visible, num_shared, queries)

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Apply a residual block to the states `(B * n, D)`."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values of the queries and return the attention output, `(B * n, H, A)`."""
        shape, rows = (self.bucket.rows, self.bucket.queries), self.bucket.rows
        own = [part.view(*shape, *part.shape[1:]) for part in (q, k, v)]
        keys, values = self.store.keys[layer], self.store.values[layer]
        keys[self.rows, :, self.positions] = own[1]
        values[self.rows, :, self.positions] = own[2]
        seen = (keys[:rows, :, : self.num_keys], values[:rows, :, : self.num_keys])
        return attention(own[0], *seen, self.mask).flatten(0, 1)
