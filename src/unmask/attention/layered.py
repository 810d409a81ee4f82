"""Layers that recompute the positions with the most changed values and reuse stored outputs elsewhere.

Source: dLLM-Cache, arXiv:2506.06295 (V-verify). A layer projects the values of the response; where these
are least similar (cosine) to the stored ones, it recomputes query, key, attention and feed-forward.
Everywhere else it adds its stored outputs. So every position has a state, though some states are stale.

Letters: N queries of all rows, n positions and shadow queries of one row, m of them recomputed, D width,
H query heads, A head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention.packed import PackedAttention, RowMeta
from unmask.caches.base import Layers
from unmask.canvas import Ints
from unmask.kv.dense_store import DenseStore
from unmask.models.ranks import ALONE, Ranks
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Layer, Rotary, attention, prepare_mask
from unmask.sampling.transfer import upload


class FeatureStore(DenseStore):
    """A dense store with attention and feed-forward outputs too, `(rows, 1, positions, D)` per layer."""

    def __init__(
        self, spec: ModelSpec, rows: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(spec, rows, positions, dtype, device)
        shape = (rows, 1, positions, spec.d_model)
        self.attn_outputs = [torch.zeros(shape, dtype=dtype, device=device) for _ in self.keys]
        self.ffn_outputs = [torch.zeros_like(each) for each in self.attn_outputs]

    @property
    def tensors(self) -> Iterator[list[Tensor]]:
        """All stored tensors, see `DenseStore.tensors`."""
        yield from super().tensors
        yield self.attn_outputs
        yield self.ffn_outputs


@dataclass(frozen=True, slots=True)
class FeatureRowMeta:
    """A row of a forward, and the positions that its layers recompute."""

    meta: RowMeta
    layers: Layers


class LayeredAttention(PackedAttention):
    """The attention backend of a layered forward.

    The packed queries are, for each row, all of its positions and then its shadow queries.
    """

    def __init__(
        self,
        metas: Sequence[FeatureRowMeta],
        store: FeatureStore,
        block_size: int | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__([item.meta for item in metas], store, block_size, device, ranks)
        self.features, self.items = store, list(metas)
        self.sizes = [len(meta.position_ids) for meta in self.metas]
        self.starts = [0, *accumulate(self.sizes[:-1])]
        self.forced = [
            self._forced(item.layers.forced, item.layers.prompt_length) for item in self.items
        ]
        """The forced positions of each row: of the prompt, and of the response, counted from its start."""
        self.visible = [
            group.visible[i, 0] if group.visible is not None else None
            for group in self.groups
            for i in range(group.count)
        ]

    def _forced(self, positions: Ints, prompt_length: int) -> tuple[Tensor, Tensor]:
        first = int((positions < prompt_length).sum())
        forced = upload(positions, self.device)
        return forced[:first], forced[first:] - prompt_length

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Apply a residual block to the states `(N, D)`, recomputing only some of its outputs."""
        index = layer.attn.layer
        normed = layer.attn_norm(x)
        chosen = [self._choose(i, layer, normed) for i in range(len(self.items))]
        at = torch.cat([own + start for own, start in zip(chosen, self.starts, strict=True)])
        part, part_rotary = normed[at], rotary.at(at)
        q, k = layer.attn.queries_and_keys(part, part_rotary)
        outputs, first = [], 0
        for i, own in enumerate(chosen):
            rows = slice(first, first + len(own))
            first = rows.stop
            outputs.append(self._attend_row(i, index, own, q[rows], k[rows]))
        added = layer.attn.output(torch.cat(outputs))
        x = x + self._store(self.features.attn_outputs[index], chosen, added)
        added = layer.ffn(layer.ffn_norm(x[at]))
        return x + self._store(self.features.ffn_outputs[index], chosen, added)

    def _choose(self, i: int, layer: Layer, normed_ND: Tensor) -> Tensor:
        """Return the queries of row i to recompute; store their values and those of the response."""
        meta, plan, size = self.items[i].meta, self.items[i].layers, self.sizes[i]
        prompt, length, index = plan.prompt_length, meta.length, layer.attn.layer
        is_full = index == 0
        first = 0 if is_full or plan.prompt else prompt
        projected = torch.arange(first, size, device=self.device)
        if first:
            projected = torch.cat((self.forced[i][0], projected))
        new = layer.attn.values(normed_ND[projected + self.starts[i]])
        stored = self.features.values[index][meta.row]
        chosen = projected
        if not (is_full or plan.response):
            count = plan.num_rows(length) - (prompt if plan.prompt else 0)
            num_forced = len(projected) - (size - first)  # of the prompt
            response = prompt - first + num_forced
            changed = self._most_changed(new[response:], stored, i, count - num_forced)
            shadows = torch.arange(length, size, device=self.device)
            chosen = torch.cat((projected[:response], changed, shadows))
        stored[:, projected] = new.transpose(0, 1)
        return chosen

    def _most_changed(self, new: Tensor, stored: Tensor, i: int, count: int) -> Tensor:
        """Return the `count` response positions with the most changed values; forced ones come first."""
        meta, plan = self.items[i].meta, self.items[i].layers
        prompt, length = plan.prompt_length, meta.length
        old = stored[:, prompt:length].transpose(0, 1).flatten(1)
        similarity = self._similarity(new[: length - prompt].flatten(1), old)
        if len(self.forced[i][1]):
            similarity.index_fill_(0, self.forced[i][1], -2.0)
        return similarity.topk(count, largest=False).indices.sort().values + prompt

    def _similarity(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the cosine similarity of rows, over the heads of all ranks."""
        if self.ranks.size == 1:
            return F.cosine_similarity(new, old, dim=-1)
        a, b = new.float(), old.float()
        dot, new_square, old_square = self.ranks.sum(
            torch.stack(((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)))
        )
        similarity: Tensor = dot / (new_square * old_square).sqrt().clamp(min=1e-8)
        return similarity

    def _attend_row(self, i: int, index: int, own: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention output `(m, H, A)` of a row's recomputed queries over all its keys."""
        row, size = self.items[i].meta.row, self.sizes[i]
        keys, values = (each[index][row] for each in (self.features.keys, self.features.values))
        keys[:, own] = k.transpose(0, 1)
        visible, num_shared = self.visible[i], q.shape[1] // keys.shape[0]
        mask = None if visible is None else prepare_mask(visible[own][None, None], num_shared, q)
        output = attention(q[None], keys[None, :, :size], values[None, :, :size], mask)
        return output[0]

    def _store(self, stored: Tensor, chosen: list[Tensor], new: Tensor) -> Tensor:
        """Write the new outputs and return those of all queries, `(N, D)`."""
        first = 0
        for i, own in enumerate(chosen):
            stored[self.items[i].meta.row, 0, own] = new[first : first + len(own)]
            first += len(own)
        rows = [
            stored[item.meta.row, 0, :size]
            for item, size in zip(self.items, self.sizes, strict=True)
        ]
        return torch.cat(rows)
