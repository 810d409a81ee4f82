"""Stores and mixings on several ranks: what rank 0 tells of them, and what the others keep and do.

Every rank has its own heads' keys and values in stores of the same shape, under the same number. Who has
which row or page is known on rank 0 only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unmask.attention.layered import Features, Layered
from unmask.attention.packed import Lane, Packed
from unmask.canvas import Ints
from unmask.distributed.control import Link
from unmask.kv.dense_store import Store
from unmask.kv.paged_store import PageStore, Table
from unmask.models.transformer import Mixing, Transformer

AnyStore = Store | PageStore


class _Told:
    """A store of rank 0 whose changes are told."""

    link: Link
    number: int

    def announce(self, link: Link, kind: str, *sizes: int) -> None:
        """Let the others make theirs, and forget it when this one is gone."""
        self.link, self.number = link, link.next_store()
        with link.telling("store", self.number, kind, *sizes):
            pass
        weakref.finalize(self, link.dropped.append, self.number).atexit = False


class ToldStore(_Told, Store):
    """Rank 0's part of a store."""

    def reserve(self, slots: int, rows: int = 0) -> None:
        """Make room."""
        if slots > self.slots or rows > len(self.keys[0]):
            with self.link.telling("reserve", self.number, slots, rows):
                super().reserve(slots, rows)

    def move_row(self, source: int, target: int, slots: int) -> None:
        """Copy the first slots of one row over another (a finished one)."""
        with self.link.telling("move_row", self.number, source, target, slots):
            super().move_row(source, target, slots)

    def move_slots(self, row: int, sources: Ints, targets: Ints) -> None:
        """Slots `sources` (ascending) of a row become slots `targets` (ascending); keys turn along."""
        with self.link.telling("move_slots", self.number, row, sources, targets):
            super().move_slots(row, sources, targets)


class ToldFeatures(ToldStore, Features):
    """The same with layer outputs."""


class ToldPages(_Told, PageStore):
    """Rank 0's part of the pages."""

    def grow(self, slots: int) -> None:
        """Make room for `slots`, more than there are."""
        with self.link.telling("grow", self.number, slots):
            super().grow(slots)

    def copy(self, source: int, target: int) -> None:
        """Copy a page's content."""
        with self.link.telling("copy", self.number, source, target):
            super().copy(source, target)


def told_mixing(mixing: Mixing | None) -> list[Any] | None:
    """A mixing as values that `wire` takes: is it layered, its store, that of pages, lanes, their pages."""
    if mixing is None:
        return None
    assert isinstance(mixing, Packed), f"no way to tell the other ranks of {type(mixing)}"
    tables = [lane.table for lane in mixing.lanes]
    paged = next((table.store for table in tables if table is not None), None)
    items: list[Any]
    if isinstance(mixing, Layered):
        items = mixing.items
    else:
        items = [replace(lane, table=None) for lane in mixing.lanes]
    pages = [None if table is None else table.pages for table in tables]
    return [isinstance(mixing, Layered), _number(mixing.store), _number(paged), items, pages]


def _number(store: AnyStore | None) -> int | None:
    assert store is None or isinstance(store, _Told), "the store was made by `new_store`"
    return None if store is None else store.number


class Stores:
    """The stores of a rank that follows, by number."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.found: dict[int, AnyStore] = {}
        self.orders: dict[str, Callable[..., None]] = {"store": self._make}
        for name in ("reserve", "move_row", "move_slots", "grow", "copy"):
            self.orders[name] = self._caller(name)

    def drop(self, numbers: list[int]) -> None:
        """Forget those that rank 0 has dropped."""
        for number in numbers:
            self.found.pop(number, None)

    def mixing(self, told: list[Any] | None) -> Packed | None:
        """What `told_mixing` told of, over this rank's stores."""
        if told is None:
            return None
        is_layered, number, paged, items, pages = told
        store = None if number is None else self.found[number]
        spec, device, ranks = self.model.spec, self.model.device, self.model.ranks
        if is_layered:
            assert isinstance(store, Features), "layered plans have their store"
            return Layered(items, store, spec.block_size, device, ranks)
        assert store is None or isinstance(store, Store), "rows are in a dense store"
        lanes = [self._lane(*each, paged) for each in zip(items, pages, strict=True)]
        return Packed(lanes, store, spec.block_size, device, ranks)

    def _lane(self, lane: Lane, pages: list[int] | None, paged: int | None) -> Lane:
        if pages is None:
            return lane
        assert paged is not None, "pages have their store"
        store = self.found[paged]
        assert isinstance(store, PageStore), "pages have their store"
        return replace(lane, table=Table.of(store, pages))

    def _make(self, number: int, kind: str, *sizes: int) -> None:
        model = self.model
        made: AnyStore
        if kind == "pages":
            made = PageStore(model.part, sizes[0], model.dtype, model.device, prefixes=False)
        else:
            (rows, slots), of = sizes, {"rows": Store, "features": Features}[kind]
            made = of(model.part, rows, slots, model.dtype, model.device)
        self.found[number] = made

    def _caller(self, name: str) -> Callable[..., None]:
        def call(number: int, *arguments: Any) -> None:
            getattr(self.found[number], name)(*arguments)

        return call
