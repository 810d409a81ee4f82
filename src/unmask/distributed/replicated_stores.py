"""Stores and mixings on several ranks: what rank 0 tells of them, and what the others keep and do.

Every rank has its own heads' keys and values in stores of the same shape, under the same number. Who has
which row or page is known on rank 0 only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unmask.attention.layered import FeatureStore, LayeredAttention
from unmask.attention.packed import PackedAttention, RowMeta
from unmask.canvas import Ints
from unmask.distributed.control import ControlChannel
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore, PageTable
from unmask.models.transformer import AttentionBackend, Transformer

AnyStore = DenseStore | PagedStore


class _Replicated:
    """A store of rank 0 whose changes are told."""

    channel: ControlChannel
    number: int

    def announce(self, channel: ControlChannel, kind: str, *sizes: int) -> None:
        """Let the others make theirs, and forget it when this one is gone."""
        self.channel, self.number = channel, channel.next_store()
        with channel.telling("store", self.number, kind, *sizes):
            pass
        weakref.finalize(self, channel.dropped.append, self.number).atexit = False


class ReplicatedStore(_Replicated, DenseStore):
    """Rank 0's part of a store."""

    def reserve(self, positions: int, rows: int = 0) -> None:
        """Make room."""
        if positions > self.positions or rows > len(self.keys[0]):
            with self.channel.telling("reserve", self.number, positions, rows):
                super().reserve(positions, rows)

    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of one row over another (a finished one)."""
        with self.channel.telling("move_row", self.number, source, target, positions):
            super().move_row(source, target, positions)

    def move_positions(self, row: int, sources: Ints, targets: Ints) -> None:
        """Move positions `sources` (ascending) of a row to `targets` (ascending), keys rotated."""
        with self.channel.telling("move_positions", self.number, row, sources, targets):
            super().move_positions(row, sources, targets)


class ReplicatedFeatures(ReplicatedStore, FeatureStore):
    """The same with layer outputs."""


class ReplicatedPages(_Replicated, PagedStore):
    """Rank 0's part of the pages."""

    def grow(self, positions: int) -> None:
        """Make room for `positions`, more than there are."""
        with self.channel.telling("grow", self.number, positions):
            super().grow(positions)

    def copy(self, source: int, target: int) -> None:
        """Copy a page's content."""
        with self.channel.telling("copy", self.number, source, target):
            super().copy(source, target)


def describe_attention(backend: AttentionBackend | None) -> list[Any] | None:
    """A mixing as values that `wire` takes: is it layered, its store, that of pages, lanes, their pages."""
    if backend is None:
        return None
    assert isinstance(backend, PackedAttention), (
        f"no way to tell the other ranks of {type(backend)}"
    )
    tables = [meta.table for meta in backend.metas]
    paged = next((table.store for table in tables if table is not None), None)
    items: list[Any]
    if isinstance(backend, LayeredAttention):
        items = backend.items
    else:
        items = [replace(meta, table=None) for meta in backend.metas]
    pages = [None if table is None else table.pages for table in tables]
    return [
        isinstance(backend, LayeredAttention),
        _number(backend.store),
        _number(paged),
        items,
        pages,
    ]


def _number(store: AnyStore | None) -> int | None:
    assert store is None or isinstance(store, _Replicated), "the store was made by `new_store`"
    return None if store is None else store.number


class Stores:
    """The stores of a rank that follows, by number."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.found: dict[int, AnyStore] = {}
        self.orders: dict[str, Callable[..., None]] = {"store": self._make}
        for name in ("reserve", "move_row", "move_positions", "grow", "copy"):
            self.orders[name] = self._caller(name)

    def drop(self, numbers: list[int]) -> None:
        """Forget those that rank 0 has dropped."""
        for number in numbers:
            self.found.pop(number, None)

    def backend(self, told: list[Any] | None) -> PackedAttention | None:
        """What `describe_attention` told of, over this rank's stores."""
        if told is None:
            return None
        is_layered, number, paged, items, pages = told
        store = None if number is None else self.found[number]
        spec, device, ranks = self.model.spec, self.model.device, self.model.ranks
        if is_layered:
            assert isinstance(store, FeatureStore), "layered plans have their store"
            return LayeredAttention(items, store, spec.block_size, device, ranks)
        assert store is None or isinstance(store, DenseStore), "rows are in a dense store"
        metas = [self._lane(*each, paged) for each in zip(items, pages, strict=True)]
        return PackedAttention(metas, store, spec.block_size, device, ranks)

    def _lane(self, meta: RowMeta, pages: list[int] | None, paged: int | None) -> RowMeta:
        if pages is None:
            return meta
        assert paged is not None, "pages have their store"
        store = self.found[paged]
        assert isinstance(store, PagedStore), "pages have their store"
        return replace(meta, table=PageTable.of(store, pages))

    def _make(self, number: int, kind: str, *sizes: int) -> None:
        model = self.model
        made: AnyStore
        if kind == "pages":
            made = PagedStore(model.part, sizes[0], model.dtype, model.device, prefixes=False)
        else:
            (rows, positions), of = sizes, {"rows": DenseStore, "features": FeatureStore}[kind]
            made = of(model.part, rows, positions, model.dtype, model.device)
        self.found[number] = made

    def _caller(self, name: str) -> Callable[..., None]:
        def call(number: int, *arguments: Any) -> None:
            getattr(self.found[number], name)(*arguments)

        return call
