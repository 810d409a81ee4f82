"""Attention calls of a layered forward: rows whose numbers of queries are alike share one.

On the CPU they must be neighbors in the store with equal numbers of queries and keys, so that keys are read
in place and a row's result does not depend on the others. Elsewhere a call of more rows takes less time
than one more call: numbers of queries may differ by less than a factor of two, and short rows are padded.

Letters: b rows, n queries of each, m recomputed queries of all rows, H query heads, G key/value heads,
A head width, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unmask.attention.layer_selection import RowSelection
from unmask.attention.visibility import ShadowRow, block_mask, canvas_mask, shadow_mask
from unmask.models.transformer import attention, prepare_mask
from unmask.sampling.transfer import upload, upload_index


@dataclass(frozen=True, slots=True)
class CallRow:
    """The queries of a row in a call: `count` of the canvas, or of the shadow queries, and its keys."""

    selection: RowSelection
    count: int
    is_shadow: bool

    @property
    def num_keys(self) -> int:
        """Number of keys to read."""
        return self.selection.size if self.is_shadow else self.selection.meta.length

    def can_follow(self, first: CallRow, previous: CallRow, device: torch.device) -> bool:
        """Return whether the row can join the call of the rows from `first` to `previous`."""
        if device.type != "cpu":
            return first.count < 2 * self.count < 4 * first.count
        is_next = self.selection.meta.row == previous.selection.meta.row + 1
        alike = (self.count, self.num_keys) == (previous.count, previous.num_keys)
        return is_next and alike and self.selection.size == previous.selection.size


def query_order(rows: Sequence[RowSelection]) -> list[RowSelection]:
    """Return rows in the order of their recomputed queries, so that rows of a call follow each other."""
    return sorted(rows, key=lambda row: (row.num_canvas, row.size, row.meta.row))


class LayerCall:
    """One call; its first query is the one with index `start` of the recomputed ones."""

    def __init__(
        self, rows: Sequence[CallRow], start: int, block_size: int | None, device: torch.device
    ) -> None:
        self.count, self.block_size = len(rows), block_size
        counts, numbers = [row.count for row in rows], [row.selection.meta.row for row in rows]
        self.packed = slice(start, start + sum(counts))
        self.num_keys = max(row.num_keys for row in rows)
        is_run = numbers == list(range(numbers[0], numbers[0] + len(rows)))
        self.rows: slice | Tensor = (
            slice(numbers[0], numbers[0] + len(rows)) if is_run else upload_index(numbers, device)
        )
        self.padded = self.kept = None
        if min(counts) < max(counts):
            firsts = np.cumsum([0, *counts[:-1]])
            columns = np.arange(max(counts))
            inside = columns < np.array(counts)[:, None]
            at = firsts[:, None] + np.minimum(columns, np.array(counts)[:, None] - 1)
            self.padded = upload(at, device)
            self.kept = upload(np.flatnonzero(inside), device)
        self.has_shadows, self.device = rows[0].is_shadow, device
        self.visible = self._visible(rows, device)
        self._mask: Tensor | None = None

    @cached_property
    def keys(self) -> Tensor:
        """The positions of the keys, `(K,)`."""
        return torch.arange(self.num_keys, device=self.device)

    def _visible(self, rows: Sequence[CallRow], device: torch.device) -> Tensor | None:
        """Return the mask as far as it is known before the forward."""
        lengths = [row.selection.meta.length for row in rows]
        if not self.has_shadows:
            if min(lengths) == self.num_keys:
                return None
            return canvas_mask(upload_index(lengths, device), self.keys)
        metas = [row.selection.meta for row in rows]
        shadows = [
            ShadowRow(m.length, m.length, m.shadows, m.position_ids[m.length :], m.shadows_attend)
            for m in metas
        ]
        return shadow_mask(shadows, self.num_keys, self.block_size, device)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Return the attention output `(m, H, A)` of the call's queries.

        `q` `(m, H, A)` and their positions `(m,)` are those of all recomputed queries, keys and values
        those of the store `(rows, G, positions, A)`.
        """
        own = self._in_rows(q)
        seen = [each[self.rows, :, : self.num_keys] for each in (keys, values)]
        mask = self._prepared(own, seen[0], positions)
        output = attention(own, seen[0], seen[1], mask).flatten(0, 1)
        return output if self.kept is None else output[self.kept]

    def _in_rows(self, packed: Tensor) -> Tensor:
        """Return the call's part of a packed tensor by rows, `(b, n, ...)`."""
        own = packed[self.packed]
        if self.padded is not None:
            return own[self.padded]
        return own.view(self.count, -1, *own.shape[1:])

    def _prepared(self, q: Tensor, keys: Tensor, positions: Tensor) -> Tensor | None:
        """Return the mask of `attention`: prepared once unless it depends on the chosen positions."""
        num_shared = q.shape[2] // keys.shape[1]
        if self.block_size is not None and not self.has_shadows:
            visible = block_mask(self._in_rows(positions), self.keys, self.block_size)
            visible = visible if self.visible is None else visible & self.visible
            return prepare_mask(visible, num_shared, q)
        if self._mask is None and self.visible is not None:
            visible = self.visible.expand(-1, -1, q.shape[1], -1)
            self._mask = prepare_mask(visible, num_shared, q)
        return self._mask


def layer_calls(
    rows: Sequence[RowSelection], block_size: int | None, device: torch.device
) -> list[LayerCall]:
    """Return the calls for the queries of `LayerSelection(rows)`, in their order."""
    parts = [CallRow(row, row.num_canvas, False) for row in rows if row.num_canvas]
    calls, start = list[LayerCall](), 0
    shadows = [CallRow(row, len(row.meta.shadows), True) for row in rows if len(row.meta.shadows)]
    for kind in (parts, shadows):
        alike = list[list[CallRow]]()
        for row in kind:
            if alike and row.can_follow(alike[-1][0], alike[-1][-1], device):
                alike[-1].append(row)
            else:
                alike.append([row])
        for each in alike:
            calls.append(LayerCall(each, start, block_size, device))
            start = calls[-1].packed.stop
    return calls
