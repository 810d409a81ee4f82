"""Batches of tokenized rows: order, packing, padding and noise, each a pure function of seed and step.

Units are what a row of a batch is made of: an example, or a window of a stream of documents. The noise of a
unit depends on seed, step and its number in the step, never on the process that trains it: several
processes train the same step as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from unmask.models.spec import ModelSpec
from unmask.train.config import NoiseConfig, TrainConfig
from unmask.train.corrupt import random_length
from unmask.train.dataset import Batch
from unmask.train.noise import Draw, Layout, corrupt_rows, mix
from unmask.train.store import HELD_OUT, TokenStore

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
CYCLE = 1000
"""Rows in which the shares of a mixture are exact."""


@dataclass(frozen=True)
class Unit:
    """The tokens of a part of a row; `is_text`: nothing follows that could be trained."""

    ids: Ids
    loss: Flags
    is_text: bool


class Units:
    """Units by number, without end: every epoch is a new permutation.

    `held_out`: those that are held out instead of the others.
    """

    def __init__(
        self, store: TokenStore, packing: str, length: int, seed: int, held_out: bool | None = False
    ) -> None:
        self.store, self.packing, self.length, self.seed = store, packing, length, seed
        chosen = (np.asarray(store.flags) & HELD_OUT).astype(bool)
        wanted = np.ones(len(store), bool) if held_out is None else chosen == held_out
        source = np.repeat(np.arange(len(store.sizes)), store.sizes)
        self.groups = [np.nonzero(wanted & (source == k))[0] for k in range(len(store.sizes))]
        self.indices = np.nonzero(wanted)[0]
        ends = np.asarray(store.ends)
        self.sizes = np.diff(ends, prepend=0)
        if packing == "within":
            counts = -(-self.sizes[self.indices] // length)
            self.windows = np.repeat(self.indices, counts)
            first = np.repeat(counts.cumsum() - counts, counts)
            self.offsets = (np.arange(len(self.windows)) - first) * length
        self.total = int(self.sizes[self.indices].sum())
        self._cached: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    @property
    def per_epoch(self) -> int:
        """Number of units of an epoch."""
        if self.packing == "across":
            return max(1, -(-self.total // self.length))
        return len(self.windows) if self.packing == "within" else len(self.indices)

    def _permutation(self, count: int, epoch: int, stream: int = 0) -> npt.NDArray[np.int64]:
        """Return the permutation of an epoch; the last few are cached."""
        key = (stream, epoch)
        if key not in self._cached:
            if len(self._cached) > 16:
                self._cached.clear()
            bits = np.random.Philox(key=np.array([self.seed, stream * 2**32 + epoch], np.uint64))
            self._cached[key] = np.random.Generator(bits).permutation(count)
        return self._cached[key]

    def unit(self, number: int, weights: Sequence[float] = ()) -> Unit:
        """Return unit `number`, counted over all epochs; `weights`: shares of the sources."""
        if self.packing == "across":
            return self._window(number)
        if self.packing == "within" and not weights:
            epoch, at = divmod(number, self.per_epoch)
            chosen = int(self._permutation(self.per_epoch, epoch)[at])
            return self._part(int(self.windows[chosen]), int(self.offsets[chosen]))
        return self._example(self.index(number, weights))

    def index(self, number: int, weights: Sequence[float] = ()) -> int:
        """Return the index in the store of example `number`, where a unit is an example."""
        if weights:
            return self._mixed(number, weights)
        epoch, at = divmod(number, self.per_epoch)
        return int(self.indices[int(self._permutation(self.per_epoch, epoch)[at])])

    def _mixed(self, number: int, weights: Sequence[float]) -> int:
        """Return the example of row `number` of a mixture: exact shares in every `CYCLE` rows."""
        shares = np.array(weights) / sum(weights)
        cuts = np.round(shares.cumsum() * CYCLE).astype(int)
        counts = np.diff(cuts, prepend=0)
        cycle, at = divmod(number, CYCLE)
        order = np.repeat(np.arange(len(counts)), counts)[self._permutation(CYCLE, cycle, 1)]
        source = int(order[at])
        own = cycle * int(counts[source]) + int((order[:at] == source).sum())
        group = self.groups[source]
        epoch, place = divmod(own, len(group))
        return int(group[self._permutation(len(group), epoch, 2 + source)[place]])

    def _example(self, index: int) -> Unit:
        ids, loss, is_text = self.store.example(index)
        return Unit(ids, loss, is_text)

    def _part(self, index: int, offset: int) -> Unit:
        start, end = self.store.span(index)
        rows = slice(start + offset, min(end, start + offset + self.length))
        ids = self.store.ids[rows].astype(np.int64)
        return Unit(ids, np.array(self.store.loss[rows]), True)

    def _window(self, number: int) -> Unit:
        """Return a window of the epoch's documents, one after the other, joined to a ring."""
        epoch, at = divmod(number, self.per_epoch)
        order = self.indices[self._permutation(len(self.indices), epoch)]
        ends = self.sizes[order].cumsum()
        begin = int(self._permutation(self.total, epoch, 1)[0]) if self.per_epoch > 1 else 0
        start, length = (begin + at * self.length) % self.total, min(self.length, self.total)
        ids: list[Ids] = []
        while length > 0:
            place = int(np.searchsorted(ends, start, side="right"))
            low, _ = self.store.span(int(order[place]))
            inside = start - int(ends[place] - self.sizes[order[place]])
            count = min(length, int(ends[place]) - start)
            ids.append(self.store.ids[low + inside : low + inside + count].astype(np.int64))
            length, start = length - count, (start + count) % self.total
        whole = np.concatenate(ids)
        return Unit(whole, np.ones(len(whole), bool), True)


class FileData:
    """Tokenized rows as a `Dataset`. `rank` of `world` processes takes its share of a step's batches."""

    def __init__(
        self, config: TrainConfig, spec: ModelSpec, units: Units, rank: int = 0, world: int = 1
    ) -> None:
        self.config, self.spec, self.units, self.rank, self.world = config, spec, units, rank, world
        self.stages: tuple[int, ...] = config.adapt.block_schedule
        rows = config.epochs * units.per_epoch
        self.num_steps = config.steps or max(1, math.ceil(rows / config.batch_size))

    def block_size(self, step: int) -> int:
        """Return the block size of a step; 0: no blocks."""
        if self.stages:
            return self.stages[min(step * len(self.stages) // self.num_steps, len(self.stages) - 1)]
        return self.spec.block_size or 0

    def batches(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of a step; all processes have equally many."""
        made = self.all_batches(step)
        made += made[: -len(made) % self.world] if self.world > 1 else []
        return made[self.rank :: self.world]

    def all_batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step for all processes."""
        config = self.config
        size = config.batch_size
        units = [self.units.unit(step * size + k, config.data.weights) for k in range(size)]
        order = sorted(range(size), key=lambda k: (len(units[k].ids), k))
        rows = [[k] for k in order]
        if self.units.packing == "pack":
            rows = pack([len(unit.ids) for unit in units], self.units.length)
        parts = [
            rows[at : at + config.micro_batch_size]
            for at in range(0, len(rows), config.micro_batch_size)
        ]
        layouts = [self._layout(part, units, step, m) for m, part in enumerate(parts)]
        return self._with_noise(layouts, step)

    def _layout(self, part: list[list[int]], units: list[Unit], step: int, number: int) -> Layout:
        """Lay out the units of a micro-batch; padding is a part of the answers or invisible."""
        config, spec = self.config, self.spec
        generator = torch.Generator().manual_seed(mix(config.seed, step, number, 1))
        is_packed = self.units.packing == "pack"
        is_causal = config.objective == "causal"
        is_open = config.sft.pad_loss and not is_packed and not is_causal
        is_open = is_open and not any(units[row[0]].is_text for row in part)
        longest = max(sum(len(units[k].ids) for k in row) for row in part)
        length = longest
        if is_open and config.sft.tail:
            length += int(torch.randint(config.sft.tail + 1, (), generator=generator))
        length = min(length, self.units.length) if longest <= self.units.length else longest
        shape = (len(part), length)
        ids = torch.full(shape, spec.eos_id)
        maskable = torch.zeros(shape, dtype=torch.bool)
        segments = torch.full(shape, -1)
        positions = torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(part):
            at = 0
            for k in row:
                end = at + len(units[k].ids)
                ids[i, at:end] = torch.from_numpy(units[k].ids)
                maskable[i, at:end] = torch.from_numpy(units[k].loss)
                segments[i, at:end] = k
                positions[i, at:end] = torch.arange(end - at)
                at = end
            if is_open and at < length:
                maskable[i, at:], segments[i, at:] = True, row[-1]
                positions[i, at:] = positions[i, at - 1] + 1 + torch.arange(length - at)
        share = 0.0 if is_causal else config.noise.random_length
        if share and all(units[k].is_text for row in part for k in row) and not is_packed:
            cut = max(2, random_length(length, generator, share))
            ids, maskable = ids[:, :cut], maskable[:, :cut]
            segments, positions = segments[:, :cut], positions[:, :cut]
        if spec.shift_logits:
            maskable = maskable & (positions > 0)
        is_text = all(units[k].is_text for row in part for k in row)
        return Layout(ids, maskable, segments, positions, is_text, is_packed)

    def _with_noise(self, layouts: list[Layout], step: int) -> list[Batch]:
        """Corrupt the micro-batches of a step."""
        config = self.config
        denominator = config.noise.denominator
        if denominator == "auto":
            is_text = all(layout.is_text for layout in layouts)
            denominator = "batch" if is_text else "sequence"
        noise = replace(config.noise, denominator=denominator)
        draw = Draw(
            seed=mix(config.seed, step, 0, 2),
            rows=config.batch_size,
            maskable=sum(int(layout.maskable_BT.sum()) for layout in layouts),
            block_size=self.block_size(step),
        )
        reach = None
        if config.objective == "causal":
            reach = 0
        elif step < config.adapt.anneal_steps:
            reach = self.units.length * step // config.adapt.anneal_steps
        own = None if draw.block_size == (self.spec.block_size or 0) else draw.block_size
        return [self._batch(layout, noise, draw, own, reach) for layout in layouts]

    def _batch(
        self,
        layout: Layout,
        noise: NoiseConfig,
        draw: Draw,
        block_size: int | None,
        reach: int | None,
    ) -> Batch:
        objective = self.config.objective
        if objective == "auto":
            objective = "block_diffusion" if draw.block_size else "llada"
        ids, segments, positions = layout.ids_BT, layout.segments_BT, layout.position_ids_BT
        noisy = corrupt_rows(layout, noise, draw, objective, self.spec.mask_id)
        if len(noisy.ids_BT) > len(ids):  # complementary: the other half of the masks
            ids, segments, positions = (torch.cat((x, x)) for x in (ids, segments, positions))
        needs = layout.is_packed or bool((segments < 0).any())
        return Batch(
            tasks=["rows"] * len(ids),
            clean_BT=ids,
            noisy=noisy,
            segments_BT=segments if needs else None,
            position_ids_BT=positions if layout.is_packed else None,
            block_size=block_size,
            reach=reach,
        )


def pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return the units of each row: the longest first, each into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        at = next((i for i, free in enumerate(room) if free >= sizes[k]), None)
        if at is None:
            rows.append([])
            room.append(max(length, sizes[k]))
            at = len(rows) - 1
        rows[at].append(k)
        room[at] -= sizes[k]
    return rows
