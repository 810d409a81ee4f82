"""Attention over packed rows: the queries of all rows in one list, without padding.

The linear layers process the queries of all rows together; attention runs once per group of adjacent rows
of equal shape. So the cost of a forward is that of its queries. Packing in place of padding is the idea of
variable-length attention kernels.

Letters: N queries of all rows, b rows of a group, n queries of each, K keys, H query heads, G key/value
heads, A head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from unmask.attention.rollout import rollout, weighted_attention
from unmask.attention.visibility import ShadowRow, block_mask, canvas_mask, shadow_mask
from unmask.canvas import NO_POSITIONS, Ints
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore, PageTable
from unmask.models.ranks import ALONE, Ranks
from unmask.models.transformer import Layer, Rotary, attention, prepare_mask
from unmask.sampling.transfer import upload, upload_index


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
        """The properties that all rows of a group share."""
        is_paged = self.table is not None
        return (
            self.is_cached,
            is_paged,
            self.needs_weights,
            len(self.positions),
            len(self.shadows),
        )

    def can_follow(self, first: RowMeta, previous: RowMeta, gathers: bool) -> bool:
        """Return whether the row can join the group of the rows from `first` to `previous`.

        A group of dense rows that are not neighbors in the store copies their keys and values (`gathers`).
        If it may, dense rows with weights need not have equal numbers of positions. Otherwise each of them
        is a group, so that the importances of its positions do not depend on other rows.
        """
        is_dense = self.is_cached and self.table is None
        if is_dense and self.needs_weights and gathers:
            count, least = len(self.positions), len(first.positions)
            is_near = least > 0 and least / 2 < count < 2 * least
            return is_near and replace(self, positions=first.positions).shape == first.shape
        if self.needs_weights:
            return False
        is_free = gathers or not is_dense
        return self.shape == previous.shape and (is_free or self.row == previous.row + 1)


@dataclass(frozen=True, slots=True)
class Padding:
    """Indices of a group of rows with unequal numbers of positions.

    `queries` `(b, n)` are the packed queries of each row, the last position repeated, then the shadow
    queries; `kept` those of a flat `(b, n)` that are no repetitions; `rows` and `places` the places of the
    packed keys in the store.
    """

    queries: Tensor
    kept: Tensor
    rows: Tensor
    places: Tensor


class RowGroup:
    """Rows of one shape, or with weights of like shapes; `start` is their first packed query.

    On the CPU, dense rows of a group are neighbors in the store, so keys and values are read in place.
    Elsewhere a copy takes less time than the kernels of one more group.
    """

    def __init__(
        self, metas: Sequence[RowMeta], start: int, block_size: int | None, device: torch.device
    ) -> None:
        first = metas[0]
        self.metas, self.count = metas, len(metas)
        counts = [len(meta.positions) for meta in metas]
        self.num_positions, self.num_shadows = max(counts), len(first.shadows)
        self.size = self.num_positions + self.num_shadows
        self.packed = slice(start, start + sum(counts) + self.count * self.num_shadows)
        numbers = [meta.row for meta in metas]
        is_run = numbers == list(range(first.row, first.row + self.count))
        is_dense = first.is_cached and first.table is None
        rows = upload_index(numbers, device) if is_dense and not is_run else None
        self.rows = slice(first.row, first.row + self.count) if rows is None else rows
        self.length = max(meta.length for meta in metas)
        self.is_cached, self.needs_weights = first.is_cached, first.needs_weights
        self.padding = None if min(counts) == max(counts) else self._padding(counts, device)
        self.positions = np.stack([_padded(m.positions, self.num_positions) for m in metas])
        self.slots = self._slots(device)
        self.position_slice = None
        if self.slots is None and self.padding is None:
            self.position_slice = _as_slice(self.positions)
        if self.position_slice is None and self.slots is None and self.padding is None:
            if rows is None:
                rows = torch.arange(first.row, first.row + self.count, device=device)
            self.row_index = rows[:, None]
            self.position_index = upload(self.positions, device)
        self.visible = self._visible(block_size, device)
        self.shadow_visible = self._shadow_visible(block_size, device)
        self._masks: dict[bool, Tensor] = {}
        self.weights: list[Tensor] = []
        """Attention probabilities `(b, n, K)` of each layer so far, if the rows need weights."""
        self.hidden = ~self.visible if self.needs_weights and self.visible is not None else None

    def _padding(self, counts: Sequence[int], device: torch.device) -> Padding:
        sizes = np.array(counts)[:, None]
        starts = np.cumsum(sizes + self.num_shadows)[:, None] - sizes - self.num_shadows
        columns, shadows = np.arange(self.num_positions), np.arange(self.num_shadows)
        own = starts + np.minimum(columns, sizes - 1)
        kept = np.concatenate((columns < sizes, np.ones((self.count, self.num_shadows), bool)), 1)
        places = [np.append(m.positions, self.length + shadows) for m in self.metas]
        rows = np.repeat([m.row for m in self.metas], [len(each) for each in places])
        rows_and_places = upload(np.stack((rows, np.concatenate(places))), device)
        return Padding(
            queries=upload(np.concatenate((own, starts + sizes + shadows), 1), device),
            kept=upload(np.flatnonzero(kept), device),
            rows=rows_and_places[0],
            places=rows_and_places[1],
        )

    def by_rows(self, packed: Tensor) -> Tensor:
        """Return the group's part of a packed tensor, `(b, n, ...)`; see `Padding`."""
        own = packed[self.packed]
        if self.padding is not None:
            return own[self.padding.queries]
        return own.view(self.count, self.size, *own.shape[1:])

    def packed_again(self, by_rows: Tensor) -> Tensor:
        """Return the packed form of a tensor `(b, n, ...)`."""
        flat = by_rows.flatten(0, 1)
        return flat if self.padding is None else flat[self.padding.kept]

    def importances(self, device: torch.device) -> Tensor:
        """Return the importance of the positions of each row, `(b, K)`, see `rollout`."""
        counts = np.array([len(meta.positions) for meta in self.metas])[:, None]
        is_own = np.arange(self.num_positions) < counts
        queries = upload(np.where(is_own, self.positions, self.length), device)
        return rollout(self.weights, queries, self.length)

    def mask(self, q: Tensor, keys: Tensor, of_shadows: bool = False) -> Tensor | None:
        """Return the mask of `attention`, prepared once for all layers; None for full attention."""
        visible = self.shadow_visible if of_shadows else self.visible
        if visible is not None and of_shadows not in self._masks:
            self._masks[of_shadows] = prepare_mask(visible, q.shape[2] // keys.shape[1], q)
        return self._masks.get(of_shadows)

    def keys_and_values(
        self, store: DenseStore | None, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store the packed keys and values `(N, G, A)` of the queries; return all seen, `(b, G, K, A)`.

        Those of paged rows were written by `PackedAttention.attend`.
        """
        if self.padding is not None:
            assert store is not None, "padded rows have a store"
            return self._scattered(store, layer, k, v)
        k, v = self.by_rows(k), self.by_rows(v)
        if not self.is_cached:
            return k.transpose(1, 2), v.transpose(1, 2)
        if self.slots is not None:
            return self._paged(layer, k, v)
        assert store is not None, "cached rows have a store"
        behind = slice(self.length, self.length + self.num_shadows)
        results = []
        for stored, new in ((store.keys[layer], k), (store.values[layer], v)):
            own = new[:, : self.num_positions]
            if self.position_slice is not None:
                stored[self.rows, :, self.position_slice] = own.transpose(1, 2)
            else:
                stored[self.row_index, :, self.position_index] = own
            if self.num_shadows:
                stored[self.rows, :, behind] = new[:, self.num_positions :].transpose(1, 2)
            results.append(stored[self.rows, :, : self.length + self.num_shadows])
        return results[0], results[1]

    def _scattered(
        self, store: DenseStore, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do the work of `keys_and_values` for rows with unequal numbers of positions."""
        assert self.padding is not None, "equal rows are written by slices"
        for stored, new in ((store.keys[layer], k), (store.values[layer], v)):
            stored[self.padding.rows, :, self.padding.places] = new[self.packed]
        end = self.length + self.num_shadows
        return store.keys[layer][self.rows, :, :end], store.values[layer][self.rows, :, :end]

    def _slots(self, device: torch.device) -> Tensor | slice | None:
        """Return the slots `(b, K)` of each row's positions; one of page 0 past a row's end."""
        tables = [meta.table for meta in self.metas if meta.table is not None]
        if not tables:
            return None
        slots = np.zeros((self.count, self.length), dtype=np.int64)
        for row, (table, meta) in enumerate(zip(tables, self.metas, strict=True)):
            slots[row, : meta.length] = table.slots[: meta.length]
        if self.count == 1 and (np.diff(slots[0]) == 1).all():  # pages need not be in order
            return slice(int(slots[0, 0]), int(slots[0, 0]) + self.length)
        return upload(slots, device)

    def _paged(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        table = self.metas[0].table
        assert table is not None, "paged rows have a table"
        assert self.slots is not None, "paged rows have slots"
        keys, values = table.store.read(layer, self.slots)
        if self.num_shadows:
            keys = torch.cat((keys, k[:, self.num_positions :]), 1)
            values = torch.cat((values, v[:, self.num_positions :]), 1)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _hides_blocks(self, block_size: int | None) -> bool:
        """Return whether some position's block is before the last key's."""
        if block_size is None or self.num_positions == 0:
            return False
        first = min(int(meta.positions[0]) for meta in self.metas)
        return first // block_size < (self.length - 1) // block_size

    def _visible(self, block_size: int | None, device: torch.device) -> Tensor | None:
        """Return the mask of the canvas's own queries, bool `(b, 1, n, K)`; None where all see all keys."""
        is_ragged = any(meta.length != self.length for meta in self.metas)
        hides_blocks = self._hides_blocks(block_size)
        if not (is_ragged or hides_blocks):
            return None
        lengths = upload_index([meta.length for meta in self.metas], device)
        keys = torch.arange(self.length, device=device)
        visible = canvas_mask(lengths, keys).expand(-1, -1, self.num_positions, -1)
        if hides_blocks and block_size is not None:
            positions = upload(self.positions, device)
            visible = visible & block_mask(positions, keys, block_size)
        return visible

    def _shadow_visible(self, block_size: int | None, device: torch.device) -> Tensor | None:
        """Return the mask of the shadow queries; their keys follow the longest canvas of the group."""
        if not self.num_shadows:
            return None
        rows = [
            ShadowRow(
                meta.length,
                self.length,
                meta.shadows,
                meta.position_ids[len(meta.positions) :],
                meta.shadows_attend,
            )
            for meta in self.metas
        ]
        return shadow_mask(rows, self.length + self.num_shadows, block_size, device)


class PackedAttention:
    """The attention backend of a packed forward."""

    def __init__(
        self,
        metas: Sequence[RowMeta],
        store: DenseStore | None,
        block_size: int | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.metas, self.store, self.device, self.ranks = metas, store, device, ranks
        self.groups = self._groups(block_size)
        self.page_writes = self._page_writes()
        if store is not None:
            sizes = [
                group.length + group.num_shadows for group in self.groups if group.slots is None
            ]
            store.reserve(max(sizes, default=0))

    def _groups(self, block_size: int | None) -> list[RowGroup]:
        alike: list[list[RowMeta]] = []
        for meta in self.metas:
            gathers = self.device.type != "cpu"
            if alike and meta.can_follow(alike[-1][0], alike[-1][-1], gathers):
                alike[-1].append(meta)
            else:
                alike.append([meta])
        groups, start = list[RowGroup](), 0
        for metas in alike:
            groups.append(RowGroup(metas, start, block_size, self.device))
            start = groups[-1].packed.stop
        return groups

    def _page_writes(self) -> tuple[PagedStore, Tensor, Tensor] | None:
        """Return the paged store, the packed queries with new keys, and the slots of these."""
        sources, targets, start, store = list[Ints](), list[Ints](), 0, None
        for meta in self.metas:
            if meta.table is not None:
                store = meta.table.store
                new = np.flatnonzero(meta.positions >= meta.write_from)
                sources.append(new + start)
                targets.append(meta.table.slots[meta.positions[new]])
            start += len(meta.position_ids)
        if store is None:
            return None
        at = [upload(np.concatenate(each), self.device) for each in (sources, targets)]
        return store, at[0], at[1]

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Apply a residual block to the states `(N, D)`."""
        result: Tensor = layer(x, rotary, self)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention output of all queries, `(N, H, A)`."""
        if self.page_writes is not None:
            pages, sources, targets = self.page_writes
            pages.write(layer, targets, k[sources], v[sources])
        outputs = [self._attend(group, layer, q, k, v) for group in self.groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, group: RowGroup, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = group.keys_and_values(self.store, layer, k, v)
        canvas, shadows = torch.split(
            group.by_rows(q), [group.num_positions, group.num_shadows], dim=1
        )
        inside = [each[:, :, : group.length] for each in (keys, values)]
        if group.needs_weights:
            output, mean = weighted_attention(canvas, inside[0], inside[1], group.hidden)
            size = self.ranks.size
            group.weights.append(mean if size == 1 else self.ranks.sum(mean) / size)
        else:
            output = attention(canvas, inside[0], inside[1], group.mask(canvas, keys))
        if group.num_shadows:
            behind = attention(shadows, keys, values, group.mask(shadows, keys, of_shadows=True))
            output = torch.cat((output, behind), dim=1)
        return group.packed_again(output)

    def importances(self) -> dict[int, Tensor]:
        """Return the importances `(T,)` of the positions of each row with `needs_weights`, by row.

        To be called once, after the forward.
        """
        found = dict[int, Tensor]()
        for group in self.groups:
            if group.needs_weights:
                each = group.importances(self.device)
                found |= {m.row: own[: m.length] for m, own in zip(group.metas, each, strict=True)}
        return found


def _padded(positions: Ints, size: int) -> Ints:
    """Return positions with the last one repeated, `size` in all."""
    return positions[np.minimum(np.arange(size), len(positions) - 1)]


def _as_slice(positions: Ints) -> slice | None:
    """Return positions `(b, n)` as one slice if every row has the same contiguous range, else None."""
    if positions.shape[1] == 0:
        return slice(0, 0)
    first, last = int(positions[0, 0]), int(positions[0, -1])
    same = last - first + 1 == positions.shape[1] and bool((positions == positions[0]).all())
    return slice(first, last + 1) if same else None
