"""Keys and values in pages: a row's positions lie where its table says, and rows may share pages.

Only `block_causal` lives here. Its final keys depend on the tokens to their left alone, so they serve every
request with the same beginning; those of other caches depend on the whole canvas they were computed in, and
stay in rows of their own (`store`). Shared pages are never written: who must change one takes a copy.

Source: paged attention, arXiv:2309.06180.

Letters: G key/value heads, A head width, b rows of a run, K positions of each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import NO_POSITIONS, Ints
from unmask.kv.page_pool import PagePool, chain
from unmask.models.spec import ModelSpec

MIN_PAGE_POSITIONS = 16


def page_positions(block_size: int) -> int:
    """Positions of a page: whole blocks, at least 16 positions."""
    return -(-MIN_PAGE_POSITIONS // block_size) * block_size


class PagedStore:
    """`(positions, G, A)` keys and values a layer, `size` positions a page; grows up to `total` pages."""

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
        self.pages = PagePool(total, prefixes=prefixes)
        shape = (0, spec.num_kv_heads, spec.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        said = (
            f"{spec.family} {spec.num_layers} {spec.d_model} {spec.block_size} {self.size} {dtype}"
        )
        self.root = chain(said.encode(), NO_POSITIONS)

    @staticmethod
    def page_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes of one page in all layers."""
        assert spec.block_size is not None, "only block-causal models have pages"
        numbers = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
        return page_positions(spec.block_size) * numbers * dtype.itemsize

    def take(self) -> int:
        """A page for one owner, with its place in the tensors."""
        page = self.pages.take()
        have, wanted = len(self.keys[0]), (page + 1) * self.size
        if wanted > have:
            self.grow(min(max(2 * have, wanted), self.pages.total * self.size))
        return page

    @torch.inference_mode()
    def grow(self, positions: int) -> None:
        """Make room for `positions`, more than there are."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                more = tensor.new_zeros(positions - len(tensor), *tensor.shape[1:])
                tensors[layer] = torch.cat((tensor, more))

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy a page's content."""
        size = self.size
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target * size : (target + 1) * size] = tensor[
                    source * size : (source + 1) * size
                ]

    def write(self, layer: int, at: Tensor, k: Tensor, v: Tensor) -> None:
        """Put `(n, G, A)` at these places."""
        self.keys[layer].index_copy_(0, at, k)
        self.values[layer].index_copy_(0, at, v)

    def read(self, layer: int, at_bK: Tensor | slice) -> tuple[Tensor, Tensor]:
        """`(b, K, G, A)` each; a view when the places are a slice (b = 1), else a copy."""
        if isinstance(at_bK, slice):
            return self.keys[layer][at_bK][None], self.values[layer][at_bK][None]
        flat = at_bK.flatten()
        found = [
            each[layer].index_select(0, flat).view(*at_bK.shape, *each[layer].shape[1:])
            for each in (self.keys, self.values)
        ]
        return found[0], found[1]


class PageTable:
    """One row's pages: page i holds the positions from `i * size` on; the first ones may be shared."""

    def __init__(self, store: PagedStore) -> None:
        self.store = store
        self.pages: list[int] = []
        self.keys: list[bytes] = []
        """Of the leading pages whose content is final, known to others or not."""
        self.places: Ints = NO_POSITIONS
        """Where each position lies in the store."""

    @classmethod
    def of(cls, store: PagedStore, pages: list[int]) -> PageTable:
        """A table to read and write by, of pages that somebody else keeps the books of."""
        table = cls(store)
        table.pages = pages
        table._place(0)
        return table

    def find(self, tokens: Ints) -> int:
        """Begin with the pages that others left for the longest beginning of `tokens`; their positions."""
        assert not self.pages, "a table that has pages is not looked up"
        size, key = self.store.size, self.store.root
        for start in range(0, len(tokens) - size + 1, size):
            key = chain(key, tokens[start : start + size])
            page = self.store.pages.hold(key)
            if page is None:
                break
            self.pages.append(page)
            self.keys.append(key)
        self._place(0)
        return len(self.pages) * size

    def cut(self, num_positions: int) -> None:
        """Give up the pages from position `num_positions` on."""
        kept = -(-num_positions // self.store.size)
        self.store.pages.drop(self.pages[kept:])
        del self.pages[kept:], self.keys[kept:]
        self.places = self.places[: kept * self.store.size]

    def missing(self, known: int, end: int) -> int:
        """Pages to take before the positions `[known, end)` can be written."""
        first = known // self.store.size
        shared = sum(not self.store.pages.is_private(page) for page in self.pages[first:])
        return shared + max(0, -(-end // self.store.size) - len(self.pages))

    def secure(self, known: int, end: int) -> None:
        """Make the positions `[known, end)` writable; `missing` pages must be available."""
        store, first = self.store, known // self.store.size
        del self.keys[first:]
        for i in range(first, len(self.pages)):
            page = self.pages[i]
            if not store.pages.is_private(page):
                self.pages[i] = store.take()
                if i == first and known % store.size:
                    store.copy(page, self.pages[i])
                store.pages.drop([page])
        while len(self.pages) * store.size < end:
            self.pages.append(store.take())
        self._place(first)

    def publish(self, tokens: Ints, final: int) -> None:
        """Let others use the full pages among the first `final` positions, which hold `tokens`."""
        size = self.store.size
        for i in range(len(self.keys), final // size):
            before = self.keys[-1] if self.keys else self.store.root
            self.keys.append(chain(before, tokens[i * size : (i + 1) * size]))
            self.store.pages.publish(self.pages[i], self.keys[-1])

    def _place(self, first: int) -> None:
        pages, size = np.array(self.pages[first:], dtype=np.int64), self.store.size
        new = (pages[:, None] * size + np.arange(size)).reshape(-1)
        self.places = np.concatenate((self.places[: first * size], new))
