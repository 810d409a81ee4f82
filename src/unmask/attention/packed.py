"""One forward for rows that compute different slots: one list of queries, no padding.

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
from unmask.canvas import NO_SLOTS, Ints
from unmask.kv.dense_store import Store
from unmask.kv.paged_store import PageStore, Table
from unmask.models.ranks import ALONE, Ranks
from unmask.models.transformer import Layer, Rotary, attention


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of a forward: `row` of the store, the slots it computes (ascending), its canvas's length.

    `positions` of its queries: those of `slots`, then those of the twins, each of which is blind to
    `twins` (of equal length) and sees other twins if `twins_meet`. `kept`: keys and values go to the
    store and the others come from there; without it, `slots` are the whole canvas. `watched`: who
    attended to whom is told. `table`: it is kept in pages, where slots before `known` are not written.
    """

    row: int
    slots: Ints
    length: int
    positions: Ints
    twins: Ints = field(default_factory=lambda: NO_SLOTS)
    twins_meet: bool = True
    kept: bool = True
    watched: bool = False
    table: Table | None = None
    known: int = 0

    @property
    def shape(self) -> tuple[bool, bool, bool, int, int]:
        """Lanes that differ in it cannot share a run."""
        paged = self.table is not None
        return self.kept, paged, self.watched, len(self.slots), len(self.twins)

    def follows(self, other: Lane) -> bool:
        """Whether attention can take both at once."""
        anywhere = self.table is not None or not self.kept
        return self.shape == other.shape and (anywhere or self.row == other.row + 1)


class Run:
    """Adjacent lanes of one shape, from packed query `start` on."""

    def __init__(
        self, lanes: Sequence[Lane], start: int, block_size: int | None, device: torch.device
    ) -> None:
        first = lanes[0]
        self.lanes, self.count = lanes, len(lanes)
        self.num_slots, self.num_twins = len(first.slots), len(first.twins)
        self.size = self.num_slots + self.num_twins
        self.packed = slice(start, start + self.count * self.size)
        self.rows = slice(first.row, first.row + self.count)
        self.length = max(lane.length for lane in lanes)
        self.kept, self.watched = first.kept, first.watched
        slots = np.stack([lane.slots for lane in lanes])
        self.places: Tensor | slice | None = self._places(device)
        self.to = _as_slice(slots) if self.places is None else None
        if self.to is None and self.places is None and self.kept:
            rows = torch.arange(first.row, first.row + self.count, device=device)
            self.row_index, self.slot_index = rows[:, None], torch.from_numpy(slots).to(device)
        self.visible = self._visible(block_size, device)

    def keys_and_values(
        self, store: Store | None, layer: int, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write what the queries `(b, n, G, A)` bring; `(b, G, K, A)` of all that is seen."""
        if not self.kept:
            return k.transpose(1, 2), v.transpose(1, 2)
        if self.places is not None:
            return self._paged(layer, k, v)
        assert store is not None, "what is kept has a place"
        behind = slice(self.length, self.length + self.num_twins)
        seen = []
        for stored, new in ((store.keys[layer], k), (store.values[layer], v)):
            own = new[:, : self.num_slots]
            if self.to is not None:
                stored[self.rows, :, self.to] = own.transpose(1, 2)
            else:
                stored[self.row_index, :, self.slot_index] = own
            if self.num_twins:
                stored[self.rows, :, behind] = new[:, self.num_slots :].transpose(1, 2)
            seen.append(stored[self.rows, :, : self.length + self.num_twins])
        return seen[0], seen[1]

    def _places(self, device: torch.device) -> Tensor | slice | None:
        """Where in the pages the slots of each row are, `(b, K)`; where a row ends, any place will do."""
        tables = [lane.table for lane in self.lanes if lane.table is not None]
        if not tables:
            return None
        found = np.zeros((self.count, self.length), dtype=np.int64)
        for row, (table, lane) in enumerate(zip(tables, self.lanes, strict=True)):
            found[row, : lane.length] = table.places[: lane.length]
        if self.count == 1 and (np.diff(found[0]) == 1).all():  # pages need not be in order
            return slice(int(found[0, 0]), int(found[0, 0]) + self.length)
        return torch.from_numpy(found).to(device)

    def _paged(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As `keys_and_values`, from the pages, where the new ones are already."""
        table = self.lanes[0].table
        assert table is not None, "made so"
        assert self.places is not None, "made so"
        seen = table.store.read(layer, self.places)
        if self.num_twins:
            twins = (k[:, self.num_slots :], v[:, self.num_slots :])
            seen = (torch.cat((seen[0], twins[0]), 1), torch.cat((seen[1], twins[1]), 1))
        return seen[0].transpose(1, 2), seen[1].transpose(1, 2)

    def _visible(self, block_size: int | None, device: torch.device) -> Tensor | None:
        """Who sees whom, `(b, 1, n, K)`; None when everyone sees everyone."""
        lengths = torch.tensor([lane.length for lane in self.lanes], device=device)[:, None, None]
        ragged = any(lane.length != self.length for lane in self.lanes)
        if not (ragged or block_size or self.num_twins):
            return None
        keys = torch.arange(self.length, device=device)
        visible = (keys < lengths).expand(-1, self.size, -1)
        if block_size is not None:
            places = np.stack([lane.positions for lane in self.lanes])
            blocks = torch.from_numpy(places // block_size).to(device)[:, :, None]
            visible = visible & (keys // block_size <= blocks)
        if self.num_twins:
            visible = torch.cat(
                (visible, visible.new_zeros(1).expand(self.count, self.size, self.num_twins)), -1
            )
            for i, lane in enumerate(self.lanes):
                rows = torch.arange(self.num_slots, self.size, device=device)
                visible[i, rows, torch.from_numpy(lane.twins).to(device)] = False
                meet = torch.eye(self.num_twins, dtype=torch.bool, device=device)
                if lane.twins_meet:
                    meet = torch.ones_like(meet)
                visible[i, self.num_slots :, self.length :] = meet
        return visible[:, None]


class Packed:
    """The mixing of a packed forward; after it `maps[row]` has, of watched lanes, `(n, T)` a layer."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        store: Store | None,
        block_size: int | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.lanes, self.store, self.device, self.ranks = lanes, store, device, ranks
        self.maps: dict[int, list[Tensor]] = {lane.row: [] for lane in lanes if lane.watched}
        self.runs = self._runs(block_size)
        self.written = self._written()
        if store is not None:
            sizes = [run.length + run.num_twins for run in self.runs if run.places is None]
            store.reserve(max(sizes, default=0))

    def _runs(self, block_size: int | None) -> list[Run]:
        groups: list[list[Lane]] = []
        for lane in self.lanes:
            if groups and lane.follows(groups[-1][-1]):
                groups[-1].append(lane)
            else:
                groups.append([lane])
        runs, start = [], 0
        for group in groups:
            runs.append(Run(group, start, block_size, self.device))
            start = runs[-1].packed.stop
        return runs

    def _written(self) -> tuple[PageStore, Tensor, Tensor] | None:
        """The pages that are written, which queries go there, and where to."""
        sources, targets, start, store = list[Ints](), list[Ints](), 0, None
        for lane in self.lanes:
            if lane.table is not None:
                store = lane.table.store
                new = np.flatnonzero(lane.slots >= lane.known)
                sources.append(new + start)
                targets.append(lane.table.places[lane.slots[new]])
            start += len(lane.positions)
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
        found = [self._attend(run, layer, q, k, v) for run in self.runs]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend(self, run: Run, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = [part[run.packed].view(run.count, run.size, *part.shape[1:]) for part in (q, k, v)]
        keys, values = run.keys_and_values(self.store, layer, own[1], own[2])
        if run.watched:
            self._watch(run, own[0], keys)
        return attention(own[0], keys, values, run.visible).flatten(0, 1)

    def _watch(self, run: Run, q: Tensor, keys: Tensor) -> None:
        for i, lane in enumerate(run.lanes):
            visible = (
                None if run.visible is None else run.visible[i, 0, : run.num_slots, : lane.length]
            )
            seen = head_mean(q[i, : run.num_slots], keys[i, :, : lane.length], visible)
            self.maps[lane.row].append(self.ranks.sum(seen) / self.ranks.size)


def _as_slice(slots: Ints) -> slice | None:
    """The slots `(b, n)` as one slice, when every row has the same contiguous range."""
    if slots.shape[1] == 0:
        return slice(0, 0)
    first, last = int(slots[0, 0]), int(slots[0, -1])
    same = last - first + 1 == slots.shape[1] and bool((slots == slots[0]).all())
    return slice(first, last + 1) if same else None
