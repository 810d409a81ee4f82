"""Keys and values in pages: a page table maps a row's positions to slots, and rows may share pages.

Pages serve caches of block-causal models. Their final keys depend on the tokens to their left alone, so
requests with a common prefix can share them; keys of other caches depend on the whole canvas and are stored
in dense rows (`dense_store`). Shared pages are never written: a row that must change one copies it. Page 0
is in no table: rows and queries that are padding write there.

Source: paged attention, arXiv:2309.06180.

Letters: G key/value heads, A head width, b rows of a group, K positions of each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import NO_POSITIONS, Ints
from unmask.kv.page_pool import PagePool, owner_key, page_key
from unmask.models.spec import ModelSpec

MIN_PAGE_POSITIONS = 16


def page_positions(block_size: int) -> int:
    """Return the number of positions of a page: whole blocks, at least 16 positions."""
    return -(-MIN_PAGE_POSITIONS // block_size) * block_size


class PagedStore:
    """Keys and values `(slots, G, A)` per layer, `size` slots per page.

    Grows up to `total` pages and page 0.
    """

    def __init__(
        self,
        spec: ModelSpec,
        total: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        prefixes: bool = True,
    ) -> None:
        assert spec.block_size is not None, "only block-causal models have pages"
        self.block_size, self.size = spec.block_size, page_positions(spec.block_size)
        self.pool = PagePool(total, prefixes=prefixes)
        shape = (0, spec.num_kv_heads, spec.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        layout = (
            f"{spec.family} {spec.num_layers} {spec.d_model} {spec.block_size} {self.size} {dtype}"
        )
        self.root_key = page_key(layout.encode(), NO_POSITIONS)

    @staticmethod
    def page_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Return the size of one page over all layers, in bytes."""
        assert spec.block_size is not None, "only block-causal models have pages"
        numbers = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
        return page_positions(spec.block_size) * numbers * dtype.itemsize

    def allocate(self) -> int:
        """Return a page with one owner; grow the tensors if they do not have its slots yet."""
        page = self.pool.allocate()
        num_slots, needed = len(self.keys[0]), (page + 1) * self.size
        if needed > num_slots:
            self.grow(min(max(2 * num_slots, needed), (self.pool.total + 1) * self.size))
        return page

    @torch.inference_mode()
    def grow(self, num_slots: int) -> None:
        """Grow the tensors to `num_slots` slots."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                more = tensor.new_zeros(num_slots - len(tensor), *tensor.shape[1:])
                tensors[layer] = torch.cat((tensor, more))

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy the content of page `source` to page `target`."""
        size = self.size
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target * size : (target + 1) * size] = tensor[
                    source * size : (source + 1) * size
                ]

    def write(self, layer: int, slots_n: Tensor, k_nGA: Tensor, v_nGA: Tensor) -> None:
        """Write keys and values to slots."""
        self.keys[layer].index_copy_(0, slots_n, k_nGA)
        self.values[layer].index_copy_(0, slots_n, v_nGA)

    def read(self, layer: int, slots_bK: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return keys and values `(b, K, G, A)`: views for a slice of slots (b = 1), else copies."""
        if isinstance(slots_bK, slice):
            return self.keys[layer][slots_bK][None], self.values[layer][slots_bK][None]
        flat = slots_bK.flatten()
        keys, values = (
            each[layer].index_select(0, flat).view(*slots_bK.shape, *each[layer].shape[1:])
            for each in (self.keys, self.values)
        )
        return keys, values


class PageTable:
    """The pages of one row: page i has the positions from `i * size` on; the first pages may be shared.

    Only tables of the same `owner` share pages: that of an adapter, or None.
    """

    def __init__(self, store: PagedStore, owner: str | None = None) -> None:
        self.store = store
        self.root_key = store.root_key if owner is None else owner_key(store.root_key, owner)
        self.pages: list[int] = []
        self.page_keys: list[bytes] = []
        """Keys of the leading pages with final content."""
        self.slots: Ints = NO_POSITIONS
        """The slot of each position in the store."""

    @classmethod
    def from_pages(cls, store: PagedStore, pages: list[int]) -> PageTable:
        """Return a table of pages with owners that are managed elsewhere (on rank 0)."""
        table = cls(store)
        table.pages = pages
        table._map_slots(0)
        return table

    def match_prefix(self, tokens: Ints) -> int:
        """Share the pages of the longest published prefix of `tokens`; return its number of positions."""
        assert not self.pages, "the table has no pages yet"
        size, key = self.store.size, self.root_key
        for start in range(0, len(tokens) - size + 1, size):
            key = page_key(key, tokens[start : start + size])
            page = self.store.pool.share(key)
            if page is None:
                break
            self.pages.append(page)
            self.page_keys.append(key)
        self._map_slots(0)
        return len(self.pages) * size

    def truncate(self, num_positions: int) -> None:
        """Release the pages after those of the first `num_positions` positions."""
        num_pages = -(-num_positions // self.store.size)
        self.store.pool.release(self.pages[num_pages:])
        del self.pages[num_pages:], self.page_keys[num_pages:]
        self.slots = self.slots[: num_pages * self.store.size]

    def num_missing(self, start: int, end: int) -> int:
        """Return the number of pages to allocate before the positions `[start, end)` can be written."""
        first = start // self.store.size
        shared = sum(not self.store.pool.is_writable(page) for page in self.pages[first:])
        return shared + max(0, -(-end // self.store.size) - len(self.pages))

    def reserve(self, start: int, end: int) -> None:
        """Allocate pages so that the positions `[start, end)` are writable; shared ones are copied.

        `num_missing` pages must be available.
        """
        store, first = self.store, start // self.store.size
        del self.page_keys[first:]
        for i in range(first, len(self.pages)):
            page = self.pages[i]
            if not store.pool.is_writable(page):
                self.pages[i] = store.allocate()
                if i == first and start % store.size:
                    store.copy(page, self.pages[i])
                store.pool.release([page])
        while len(self.pages) * store.size < end:
            self.pages.append(store.allocate())
        self._map_slots(first)

    def publish(self, tokens: Ints, num_final: int) -> None:
        """Publish the full pages of the first `num_final` positions, which contain `tokens`."""
        size = self.store.size
        for i in range(len(self.page_keys), num_final // size):
            previous = self.page_keys[-1] if self.page_keys else self.root_key
            self.page_keys.append(page_key(previous, tokens[i * size : (i + 1) * size]))
            self.store.pool.publish(self.pages[i], self.page_keys[-1])

    def _map_slots(self, first: int) -> None:
        pages, size = np.array(self.pages[first:], dtype=np.int64), self.store.size
        new = (pages[:, None] * size + np.arange(size)).reshape(-1)
        self.slots = np.concatenate((self.slots[: first * size], new))
