"""KV stores under tensor parallelism: rank 0 broadcasts each mutation, the other ranks replay it.

Every rank stores the keys and values of its own heads, in stores of equal shape under the same number. The
assignment of rows and pages to sequences exists on rank 0 only.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from unmask.attention.layered import FeatureRowMeta, FeatureStore, LayeredAttention
from unmask.attention.packed import PackedAttention, RowMeta
from unmask.canvas import Ints
from unmask.distributed.codec import (
    AttentionMessage,
    CreateStore,
    MessageError,
    MutateStore,
    Mutation,
    StoreKind,
)
from unmask.distributed.control import ControlChannel
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore, PageTable
from unmask.models.transformer import AttentionBackend, Transformer

Store = DenseStore | PagedStore


class ReplicatedStore:
    """A mixin for rank 0's part of a store, which has replicas on the other ranks."""

    channel: ControlChannel
    number: int

    def create_replicas(self, channel: ControlChannel, kind: StoreKind, *sizes: int) -> None:
        """Create the store on the other ranks; they release it when this one is garbage-collected."""
        self.channel, self.number = channel, channel.next_store()
        with channel.collective(CreateStore(self.number, kind, sizes)):
            pass
        weakref.finalize(self, channel.released.append, self.number).atexit = False

    def message(self, mutation: Mutation, *arguments: int | Ints) -> MutateStore:
        """Return the message of a mutation of this store."""
        return MutateStore(self.number, mutation, arguments)


class ReplicatedDenseStore(ReplicatedStore, DenseStore):
    """Rank 0's part of a dense store."""

    def reserve(self, positions: int, rows: int = 0) -> None:
        """Grow the store on every rank, see `DenseStore.reserve`."""
        if positions > self.positions or rows > len(self.keys[0]):
            with self.channel.collective(self.message("reserve", positions, rows)):
                super().reserve(positions, rows)

    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy a row on every rank, see `DenseStore.move_row`."""
        with self.channel.collective(self.message("move_row", source, target, positions)):
            super().move_row(source, target, positions)

    def move_positions(self, row: int, sources: Ints, targets: Ints) -> None:
        """Move positions on every rank, see `DenseStore.move_positions`."""
        with self.channel.collective(self.message("move_positions", row, sources, targets)):
            super().move_positions(row, sources, targets)


class ReplicatedFeatureStore(ReplicatedDenseStore, FeatureStore):
    """Rank 0's part of a feature store."""


class ReplicatedPagedStore(ReplicatedStore, PagedStore):
    """Rank 0's part of a paged store."""

    def grow(self, num_slots: int) -> None:
        """Grow the store on every rank, see `PagedStore.grow`."""
        with self.channel.collective(self.message("grow", num_slots)):
            super().grow(num_slots)

    def copy(self, source: int, target: int) -> None:
        """Copy a page on every rank, see `PagedStore.copy`."""
        with self.channel.collective(self.message("copy", source, target)):
            super().copy(source, target)


def attention_message(backend: AttentionBackend | None) -> AttentionMessage | None:
    """Return the arguments from which the other ranks build their part of an attention backend."""
    if backend is None:
        return None
    if not isinstance(backend, PackedAttention):
        raise TypeError(f"{type(backend).__name__} has no message; use PackedAttention")
    tables = [meta.table for meta in backend.metas]
    return AttentionMessage(
        rows=backend.items
        if isinstance(backend, LayeredAttention)
        else [replace(meta, table=None) for meta in backend.metas],
        store=_number(backend.store),
        paged_store=_number(next((table.store for table in tables if table is not None), None)),
        pages=[None if table is None else table.pages for table in tables],
    )


def _number(store: Store | None) -> int | None:
    assert store is None or isinstance(store, ReplicatedStore), "the store has no replicas"
    return None if store is None else store.number


class StoreReplicas:
    """The stores of a rank other than 0, by number."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.by_number: dict[int, Store] = {}

    def create(self, message: CreateStore) -> None:
        """Create this rank's part of a store."""
        part, dtype, device = self.model.part, self.model.dtype, self.model.device
        if message.kind == "paged":
            store: Store = PagedStore(part, message.sizes[0], dtype, device, prefixes=False)
        else:
            kind = {"dense": DenseStore, "features": FeatureStore}[message.kind]
            rows, positions = message.sizes
            store = kind(part, rows, positions, dtype, device)
        self.by_number[message.store] = store

    def mutate(self, message: MutateStore) -> None:
        """Replay a mutation. Raises MessageError for an unknown one."""
        if message.mutation not in get_args(Mutation):
            raise MessageError(f"unknown mutation {message.mutation!r} of store {message.store}")
        getattr(self.by_number[message.store], message.mutation)(*message.arguments)

    def release(self, numbers: Sequence[int]) -> None:
        """Release stores that no longer exist on rank 0."""
        for number in numbers:
            self.by_number.pop(number, None)

    def backend(self, message: AttentionMessage | None) -> PackedAttention | None:
        """Return this rank's part of an attention backend, see `attention_message`."""
        if message is None:
            return None
        spec, device, ranks = self.model.spec, self.model.device, self.model.ranks
        store = None if message.store is None else self.by_number[message.store]
        layered = [row for row in message.rows if isinstance(row, FeatureRowMeta)]
        if layered:
            assert isinstance(store, FeatureStore), "layered rows are in a feature store"
            return LayeredAttention(layered, store, spec.block_size, device, ranks)
        assert store is None or isinstance(store, DenseStore), "rows are in a dense store"
        plain = [row for row in message.rows if isinstance(row, RowMeta)]
        metas = [
            row if pages is None else replace(row, table=self._table(message.paged_store, pages))
            for row, pages in zip(plain, message.pages, strict=True)
        ]
        return PackedAttention(metas, store, spec.block_size, device, ranks)

    def _table(self, number: int | None, pages: Sequence[int]) -> PageTable:
        assert number is not None, "pages have a store"
        store = self.by_number[number]
        assert isinstance(store, PagedStore), "pages are in a paged store"
        return PageTable.from_pages(store, list(pages))
