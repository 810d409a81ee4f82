"""Attention of a forward of fixed shapes: every number that changes from step to step is in a tensor.

A compiler takes such a forward as one graph, and a CUDA graph replays it, so that the host launches one
kernel in place of hundreds. The shapes are those of a `Bucket`. In a dense store, a row with fewer queries
repeats its last one, which writes the same keys and values twice, and a row that takes no part computes the
spare position, which no canvas has. In pages, both write to page 0, which no table has.

Letters: B rows, n queries of each, K keys, P pages of each row, H query heads, G key/value heads, A head
width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unmask.attention.packed import RowMeta
from unmask.attention.visibility import block_mask, canvas_mask
from unmask.canvas import Ints
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Layer, Rotary, attention, prepare_mask

ROWS = (1, 2, 4, 8, 16, 32, 64)
QUERIES = (1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65)
"""Queries of a row: blocks of powers of two, and one more where the logits are shifted."""
LEAST_KEYS = 256
"""Keys are padded to this number times a power of two."""
CHEAP_QUERIES = 256
"""Queries of a forward up to which a GPU reads weights for longer than it computes, about."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shapes of a forward: rows, queries of each, keys that each may attend to."""

    rows: int
    queries: int
    keys: int

    def num_pages(self, size: int) -> int:
        """Return the number of pages of `size` positions that hold the keys of a row."""
        return -(-self.keys // size)


def bucket_of(metas: Sequence[RowMeta], num_rows: int, *, in_pages: bool = False) -> Bucket | None:
    """Return the bucket of `num_rows` rows, of which `metas` compute; None if they do not suit one.

    With `in_pages` all of them must be stored in pages, without it in dense rows. A bucket of more than
    `CHEAP_QUERIES` queries is no more than half padding: one long row beside many short ones runs packed.
    """
    most = max(len(meta.positions) for meta in metas)
    if num_rows > ROWS[-1] or not 0 < most <= QUERIES[-1]:
        return None
    if not all((meta.table is not None) == in_pages and _suits(meta) for meta in metas):
        return None
    keys, longest = LEAST_KEYS, max(meta.length for meta in metas)
    while keys < longest:
        keys *= 2
    bucket = Bucket(_rung(ROWS, num_rows), _rung(QUERIES, most), keys)
    num_queries = sum(len(meta.positions) for meta in metas)
    is_padding = bucket.rows * bucket.queries > max(CHEAP_QUERIES, 2 * num_queries)
    return None if is_padding else bucket


def _suits(meta: RowMeta) -> bool:
    """Return whether a row has stored keys and nothing but queries of its canvas."""
    has_others = len(meta.shadows) or meta.needs_weights
    return meta.is_cached and not has_others and len(meta.positions) > 0


def _rung(ladder: tuple[int, ...], least: int) -> int:
    return ladder[bisect_left(ladder, least)]


def numbers_of(
    bucket: Bucket,
    places: Sequence[int],
    metas: Sequence[RowMeta],
    ids: Sequence[Ints],
    spare: int = 0,
) -> np.ndarray:
    """Return what changes from step to step, int64 `(B, 2n + 1)`: ids, positions and length of each row.

    Row `places[i]` of the bucket computes the tokens `ids[i]` of `metas[i]`; the others compute the
    position `spare`.
    """
    n = bucket.queries
    numbers = np.zeros((bucket.rows, 2 * n + 1), dtype=np.int64)
    numbers[:, n : 2 * n], numbers[:, 2 * n] = spare, 1
    for place, meta, tokens in zip(places, metas, ids, strict=True):
        row, count = numbers[place], len(tokens)
        row[:count], row[count:n] = tokens, tokens[-1]
        row[n : n + count], row[n + count : 2 * n] = meta.positions, meta.positions[-1]
        row[2 * n] = meta.length
    return numbers


def pages_of(bucket: Bucket, metas: Sequence[RowMeta], size: int) -> np.ndarray:
    """Return where the first rows of a bucket write and read, int64 `(B, n + P)`: slots and pages.

    The keys of queries below `write_from` are final: as those of padding, they go to page 0.
    """
    n = bucket.queries
    numbers = np.zeros((bucket.rows, n + bucket.num_pages(size)), dtype=np.int64)
    for row, meta in zip(numbers, metas, strict=False):
        assert meta.table is not None, "the rows are stored in pages"
        slots, pages = meta.table.slots[meta.positions], -(-meta.length // size)
        row[: len(slots)] = np.where(meta.positions >= meta.write_from, slots, 0)
        row[n : n + pages] = meta.table.pages[:pages]
    return numbers


class StaticKeys(Protocol):
    """Keys and values of the rows of a bucket, of which each row sees the first `num_keys`."""

    num_keys: int

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of the queries, `(B, n, G, A)`; return those of all positions, `(B, G, K, A)`."""


class DenseKeys:
    """The first rows of a dense store, read in place."""

    def __init__(self, store: DenseStore, bucket: Bucket, positions_Bn: Tensor) -> None:
        self.store, self.positions = store, positions_Bn
        self.num_rows, self.num_keys = bucket.rows, min(bucket.keys, store.positions)
        self.rows = torch.arange(bucket.rows, device=positions_Bn.device)[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Do as `StaticKeys` has it."""
        keys, values = self.store.keys[layer], self.store.values[layer]
        keys[self.rows, :, self.positions] = k
        values[self.rows, :, self.positions] = v
        seen = [each[: self.num_rows, :, : self.num_keys] for each in (keys, values)]
        return seen[0], seen[1]


class PagedKeys:
    """The pages of each row, gathered; `numbers` `(B, n + P)` are those of `pages_of`."""

    def __init__(self, store: PagedStore, bucket: Bucket, numbers: Tensor) -> None:
        self.store, n, size = store, bucket.queries, store.size
        self.num_keys = bucket.num_pages(size) * size
        self.targets = numbers[:, :n].flatten()
        offsets = torch.arange(size, device=numbers.device)
        self.slots = (numbers[:, n:, None] * size + offsets).flatten(1)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Do as `StaticKeys` has it."""
        self.store.write(layer, self.targets, k.flatten(0, 1), v.flatten(0, 1))
        keys, values = self.store.read(layer, self.slots)
        return keys.transpose(1, 2), values.transpose(1, 2)


class StaticAttention:
    """The attention backend of a forward of fixed shapes over stored keys."""

    def __init__(
        self,
        keys: StaticKeys,
        positions_Bn: Tensor,
        lengths_B: Tensor,
        spec: ModelSpec,
        dtype: torch.dtype,
    ) -> None:
        self.keys, self.shape = keys, positions_Bn.shape
        every = torch.arange(keys.num_keys, device=positions_Bn.device)
        visible = canvas_mask(lengths_B, every).expand(-1, -1, self.shape[1], -1)
        if spec.block_size is not None:
            visible = visible & block_mask(positions_Bn, every, spec.block_size)
        queries = torch.empty(0, dtype=dtype, device=positions_Bn.device)
        self.mask = prepare_mask(visible, spec.num_heads // spec.num_kv_heads, queries)

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Apply a residual block to the states `(B * n, D)`."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store keys and values of the queries and return the attention output, `(B * n, H, A)`."""
        own = [part.view(*self.shape, *part.shape[1:]) for part in (q, k, v)]
        seen = self.keys.update(layer, own[1], own[2])
        return attention(own[0], *seen, self.mask).flatten(0, 1)
