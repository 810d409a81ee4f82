"""One forward for rows that compute different positions: one list of queries, no padding.

The linear layers work on all queries of all rows at once; attention goes run by run, where a run is
adjacent rows of one shape. So the work of a forward is that of its queries.

Source: ours. Packing instead of padding is what variable-length attention kernels are for.

Letters: N queries of all rows, b rows of a run, n queries of each, K keys, H and G heads, A head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unmask.attention.rollout import head_mean
from unmask.canvas import NO_POSITIONS, Ints
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore, PageTable
from unmask.models.ranks import ALONE, Ranks
from unmask.models.transformer import Layer, Rotary, attention


@dataclass(frozen=True, slots=True)
class RowMeta:
    """One row of a forward: `row` of the store, `positions` to compute (ascending) and the canvas length.

    `position_ids` are the rotary positions of the queries: first those of `positions`, then those of the
    shadow queries. Shadow query i does not attend to position `shadows[i]`; it attends to the other shadow
    queries if `shadows_attend`. With `is_cached`, new keys and values are written to the store and all
    others are read from it; without it, `positions` must cover the whole canvas. `needs_weights` requests
    the attention weights. `table` is the page table of a paged row; positions below `write_from` have their
    final keys and are not written.
    """

    row: int
    positions: Ints
    length: int
    position_ids: Ints
    shadows: Ints = field(default_factory=lambda: NO_POSITIONS)
    shadows_attend: bool = True
    is_cached: bool = True
    needs_weights: bool = False
    table: PageTable | None = None
    write_from: int = 0

    @property
    def shape(self) -> tuple[bool, bool, bool, int, int]:
        """Lanes that differ in it cannot share a run."""
        paged = self.table is not None
        return self.is_cached, paged, self.needs_weights, len(self.positions), len(self.shadows)

    def follows(self, other: RowMeta) -> bool:
        """Whether attention can take both at once."""
        anywhere = self.table is not None or not self.is_cached
        return self.shape == other.shape and (anywhere or self.row == other.row + 1)


class RowGroup:
    """Adjacent lanes of one shape, from packed query `start` on."""

    def __init__(
        self, metas: Sequence[RowMeta], start: int, block_size: int | None, device: torch.device
    ) -> None:
        first = metas[0]
        self.metas, self.count = metas, len(metas)
        self.num_positions, self.num_shadows = len(first.positions), len(first.shadows)
        self.size = self.num_positions + self.num_shadows
        self.packed = slice(start, start + self.count * self.size)
        self.rows = slice(first.row, first.row + self.count)
        self.length = max(meta.length for meta in metas)
        self.is_cached, self.needs_weights = first.is_cached, first.needs_weights
        positions = np.stack([meta.positions for meta in metas])
        self.places: Tensor | slice | None = self._places(device)
        self.to = _as_slice(positions) if self.places is None else None
        if self.to is None and self.places is None and self.is_cached:
            rows = torch.arange(first.row, first.row + self.count, device=device)
            self.row_index, self.position_index = (
                rows[:, None],
                torch.from_numpy(positions).to(device),
            )
        self.visible = self._visible(block_size, device)

    def keys_and_values(
        self, store: DenseStore | None, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write what the queries `(b, n, G, A)` bring; `(b, G, K, A)` of all that is seen."""
        if not self.is_cached:
            return k.transpose(1, 2), v.transpose(1, 2)
        if self.places is not None:
            return self._paged(layer, k, v)
        assert store is not None, "what is kept has a place"
        behind = slice(self.length, self.length + self.num_shadows)
        seen = []
        for stored, new in ((store.keys[layer], k), (store.values[layer], v)):
            own = new[:, : self.num_positions]
            if self.to is not None:
                stored[self.rows, :, self.to] = own.transpose(1, 2)
            else:
                stored[self.row_index, :, self.position_index] = own
            if self.num_shadows:
                stored[self.rows, :, behind] = new[:, self.num_positions :].transpose(1, 2)
            seen.append(stored[self.rows, :, : self.length + self.num_shadows])
        return seen[0], seen[1]

    def _places(self, device: torch.device) -> Tensor | slice | None:
        """Places in the pages of each row's positions, `(b, K)`; past a row's end any place will do."""
        tables = [meta.table for meta in self.metas if meta.table is not None]
        if not tables:
            return None
        found = np.zeros((self.count, self.length), dtype=np.int64)
        for row, (table, meta) in enumerate(zip(tables, self.metas, strict=True)):
            found[row, : meta.length] = table.places[: meta.length]
        if self.count == 1 and (np.diff(found[0]) == 1).all():  # pages need not be in order
            return slice(int(found[0, 0]), int(found[0, 0]) + self.length)
        return torch.from_numpy(found).to(device)

    def _paged(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `keys_and_values`, from the pages, where the new ones are already."""
        table = self.metas[0].table
        assert table is not None, "made so"
        assert self.places is not None, "made so"
        seen = table.store.read(layer, self.places)
        if self.num_shadows:
            shadows = (k[:, self.num_positions :], v[:, self.num_positions :])
            seen = (torch.cat((seen[0], shadows[0]), 1), torch.cat((seen[1], shadows[1]), 1))
        return seen[0].transpose(1, 2), seen[1].transpose(1, 2)

    def _visible(self, block_size: int | None, device: torch.device) -> Tensor | None:
        """Who sees whom, `(b, 1, n, K)`; None when everyone sees everyone."""
        lengths = torch.tensor([meta.length for meta in self.metas], device=device)[:, None, None]
        ragged = any(meta.length != self.length for meta in self.metas)
        if not (ragged or block_size or self.num_shadows):
            return None
        keys = torch.arange(self.length, device=device)
        visible = (keys < lengths).expand(-1, self.size, -1)
        if block_size is not None:
            places = np.stack([meta.position_ids for meta in self.metas])
            blocks = torch.from_numpy(places // block_size).to(device)[:, :, None]
            visible = visible & (keys // block_size <= blocks)
        if self.num_shadows:
            visible = torch.cat(
                (visible, visible.new_zeros(1).expand(self.count, self.size, self.num_shadows)), -1
            )
            for i, meta in enumerate(self.metas):
                rows = torch.arange(self.num_positions, self.size, device=device)
                visible[i, rows, torch.from_numpy(meta.shadows).to(device)] = False
                meet = torch.eye(self.num_shadows, dtype=torch.bool, device=device)
                if meta.shadows_attend:
                    meet = torch.ones_like(meet)
                visible[i, self.num_positions :, self.length :] = meet
        return visible[:, None]


class PackedAttention:
    """The mixing of a packed forward; after it `maps[row]` has, of watched lanes, `(n, T)` a layer."""

    def __init__(
        self,
        metas: Sequence[RowMeta],
        store: DenseStore | None,
        block_size: int | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.metas, self.store, self.device, self.ranks = metas, store, device, ranks
        self.weights: dict[int, list[Tensor]] = {
            meta.row: [] for meta in metas if meta.needs_weights
        }
        self.groups = self._groups(block_size)
        self.written = self._written()
        if store is not None:
            sizes = [
                group.length + group.num_shadows for group in self.groups if group.places is None
            ]
            store.reserve(max(sizes, default=0))

    def _groups(self, block_size: int | None) -> list[RowGroup]:
        alike: list[list[RowMeta]] = []
        for meta in self.metas:
            if alike and meta.follows(alike[-1][-1]):
                alike[-1].append(meta)
            else:
                alike.append([meta])
        groups, start = list[RowGroup](), 0
        for metas in alike:
            groups.append(RowGroup(metas, start, block_size, self.device))
            start = groups[-1].packed.stop
        return groups

    def _written(self) -> tuple[PagedStore, Tensor, Tensor] | None:
        """The pages that are written, which queries go there, and where to."""
        sources, targets, start, store = list[Ints](), list[Ints](), 0, None
        for meta in self.metas:
            if meta.table is not None:
                store = meta.table.store
                new = np.flatnonzero(meta.positions >= meta.write_from)
                sources.append(new + start)
                targets.append(meta.table.places[meta.positions[new]])
            start += len(meta.position_ids)
        if store is None:
            return None
        at = [torch.from_numpy(np.concatenate(each)).to(self.device) for each in (sources, targets)]
        return store, at[0], at[1]

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """The block as it is."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all runs, `(N, H, A)`."""
        if self.written is not None:
            pages, sources, targets = self.written
            pages.write(layer, targets, k[sources], v[sources])
        found = [self._attend(group, layer, q, k, v) for group in self.groups]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend(self, group: RowGroup, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = [
            part[group.packed].view(group.count, group.size, *part.shape[1:]) for part in (q, k, v)
        ]
        keys, values = group.keys_and_values(self.store, layer, own[1], own[2])
        if group.needs_weights:
            self._watch(group, own[0], keys)
        return attention(own[0], keys, values, group.visible).flatten(0, 1)

    def _watch(self, group: RowGroup, q: Tensor, keys: Tensor) -> None:
        for i, meta in enumerate(group.metas):
            visible = (
                None
                if group.visible is None
                else group.visible[i, 0, : group.num_positions, : meta.length]
            )
            seen = head_mean(q[i, : group.num_positions], keys[i, :, : meta.length], visible)
            self.weights[meta.row].append(self.ranks.sum(seen) / self.ranks.size)


def _as_slice(positions: Ints) -> slice | None:
    """The positions `(b, n)` as one slice, when every row has the same contiguous range."""
    if positions.shape[1] == 0:
        return slice(0, 0)
    first, last = int(positions[0, 0]), int(positions[0, -1])
    same = last - first + 1 == positions.shape[1] and bool((positions == positions[0]).all())
    return slice(first, last + 1) if same else None
