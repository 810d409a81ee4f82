"""The positions that a layer of a layered forward recomputes, as indices of the packed queries of all rows.

Most of them are known before the forward, and copied to the device once. The rest, those with the most
changed values, are chosen on the device; their number is known, so that the host need not wait for them.

Letters: N queries of all rows, c rows that choose, S positions of the longest of their responses, m
recomputed queries of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from unmask.attention.packed import RowMeta
from unmask.caches.base import Layers
from unmask.canvas import Bools, Ints
from unmask.sampling.transfer import upload

FIRST = -2.0
"""A similarity below all others: of forced positions."""


@dataclass(frozen=True, slots=True)
class RowSelection:
    """A layer's part of one row: it recomputes `prompt`, `num_response` of the response and all shadows.

    It projects the values of the whole response. `start`: the row's first packed query.
    """

    meta: RowMeta
    start: int
    prompt_length: int
    prompt: Ints
    num_response: int
    forced: Ints

    @property
    def size(self) -> int:
        """Number of packed queries."""
        return len(self.meta.position_ids)

    @property
    def response_size(self) -> int:
        """Number of positions of the response."""
        return self.meta.length - self.prompt_length

    @property
    def chooses(self) -> bool:
        """Return whether a part of the response is to be chosen by its values."""
        return 0 < self.num_response < self.response_size

    @property
    def num_canvas(self) -> int:
        """Number of recomputed positions."""
        return len(self.prompt) + self.num_response

    def response(self) -> Ints:
        """Return the packed queries of the response."""
        return self.start + np.arange(self.prompt_length, self.meta.length)

    def shadows(self) -> Ints:
        """Return the packed shadow queries."""
        return self.start + np.arange(self.meta.length, self.size)


def row_selections(
    metas: Sequence[RowMeta], layers: Sequence[Layers], is_first: bool
) -> list[RowSelection]:
    """Return what the first or every other layer recomputes of each row."""
    starts = [0, *accumulate(len(meta.position_ids) for meta in metas)]
    found = []
    for meta, plan, start in zip(metas, layers, starts, strict=False):
        inside = plan.forced < plan.prompt_length
        prompt = np.arange(plan.prompt_length)
        if not (is_first or plan.prompt):
            prompt = plan.forced[inside]
        size = meta.length - plan.prompt_length
        count = size
        if not (is_first or plan.response):
            count = plan.num_rows(meta.length) - len(prompt)
        forced = plan.forced[~inside]
        found.append(RowSelection(meta, start, plan.prompt_length, prompt, count, forced))
    return found


class LayerSelection:
    """The projected and the recomputed queries of a layer.

    `projected`: packed queries with new values, first the `num_compared` ones of responses that choose;
    None: all, in order. Recomputed are, in the order of `rows`, the canvas's positions of every row, and
    then their shadow queries.
    """

    def __init__(self, rows: Sequence[RowSelection], device: torch.device) -> None:
        self.rows, self.device = rows, device
        choosing = [row for row in rows if row.chooses]
        compared = [row.response() for row in choosing]
        others = [row.start + row.prompt for row in rows]
        others += [row.response() for row in rows if not row.chooses]
        others += [row.shadows() for row in rows]
        self.num_compared = sum(map(len, compared))
        self.projected = self._indices([*compared, *others])
        self.num_chosen = sum(row.num_response for row in choosing)
        self.template, self.holes = self._template()
        if choosing:
            self._prepare_choice(choosing)

    def _indices(self, parts: Sequence[Ints]) -> Tensor | None:
        """Return these indices on the device, or None for all packed queries in order."""
        indices = np.concatenate(parts)
        size = sum(row.size for row in self.rows)
        if len(indices) == size and bool((np.diff(indices) == 1).all()):
            return None
        return upload(indices, self.device)

    def _template(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the recomputed queries with room for the chosen ones, and the indices of that room."""
        parts, holes, start = list[Ints](), list[Ints](), 0
        for row in self.rows:
            parts.append(row.start + row.prompt)
            if row.chooses:
                first = start + len(row.prompt)
                holes.append(np.arange(first, first + row.num_response))
            parts.append(row.response()[: row.num_response])
            start += row.num_canvas
        parts += [row.shadows() for row in self.rows]
        template = self._indices(parts)
        if not holes or template is None or sum(map(len, holes)) == len(template):
            return template, None
        return template, upload(np.concatenate(holes), self.device)

    def _prepare_choice(self, rows: Sequence[RowSelection]) -> None:
        """Copy the indices of `choose` to the device."""
        sizes = [row.response_size for row in rows]
        counts = [row.num_response for row in rows]
        first = np.repeat([row.start + row.prompt_length for row in rows], counts)
        self.first, self.most = upload(first, self.device), max(counts)
        starts = [0, *accumulate(sizes)]
        forced = [
            row.forced - row.prompt_length + start for row, start in zip(rows, starts, strict=False)
        ]
        has_forced = any(map(len, forced))
        self.forced = upload(np.concatenate(forced), self.device) if has_forced else None
        self.padding = self.nothing = self.excess = self.kept = None
        if min(sizes) < max(sizes):
            inside = _ragged(sizes)
            padding = np.full(inside.shape, starts[-1])
            padding[inside] = np.arange(starts[-1])
            self.padding = upload(padding, self.device)
            self.nothing = torch.full((1,), torch.nan, device=self.device)
        self.num_rows = len(rows)
        if min(counts) < max(counts):
            inside = _ragged(counts)
            self.excess = upload(~inside, self.device)
            self.kept = upload(np.flatnonzero(inside), self.device)

    def choose(self, similarity: Tensor | None) -> Tensor | None:
        """Return the recomputed queries `(m,)`; None: all, in order.

        `similarity` has one float32 for each compared query and is changed; the least similar ones are
        chosen. Ties go to the lowest position.
        """
        if similarity is None:
            return self.template
        if self.forced is not None:
            similarity.index_fill_(0, self.forced, FIRST)
        if self.padding is not None:
            assert self.nothing is not None, "padding has a value"
            # not-a-numbers are last; those of padding follow those of positions
            similarity = torch.cat((similarity, self.nothing))[self.padding]
        table = similarity.view(self.num_rows, -1)
        best = table.sort(dim=-1, stable=True).indices[:, : self.most]
        if self.excess is not None:
            best = best.masked_fill(self.excess, table.shape[1])
        best = best.sort(dim=-1).values.flatten()
        if self.kept is not None:
            best = best[self.kept]
        chosen = best + self.first
        if self.holes is None:
            return chosen
        assert self.template is not None, "a template with room has indices"
        return self.template.index_copy(0, self.holes, chosen)


def _ragged(sizes: Sequence[int]) -> Bools:
    """Return True for the first `sizes[i]` columns of row i."""
    inside: Bools = np.arange(max(sizes)) < np.array(sizes)[:, None]
    return inside
