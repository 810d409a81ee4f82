"""Layers that recompute the positions with the most changed values and reuse stored outputs elsewhere.

Source: dLLM-Cache, arXiv:2506.06295 (V-verify). A layer projects the values of the response; where these
are least similar (cosine) to the stored ones, it recomputes query, key, attention and feed-forward.
Everywhere else it adds its stored outputs. So every position has a state, though some states are stale.

Letters: N queries of all rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention.layer_calls import layer_calls, query_order
from unmask.attention.layer_selection import LayerSelection, RowSelection, row_selections
from unmask.attention.packed import PackedAttention, RowGroup, RowMeta
from unmask.caches.base import Layers
from unmask.kv.dense_store import DenseStore
from unmask.models.ranks import ALONE, Ranks
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Layer, Rotary
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


class LayerPart:
    """The recomputed positions of a layer, and its attention calls."""

    def __init__(
        self, rows: Sequence[RowSelection], block_size: int | None, device: torch.device
    ) -> None:
        ordered = query_order(rows)
        self.selection = LayerSelection(ordered, device)
        self.calls = layer_calls(ordered, block_size, device)


class LayeredAttention(PackedAttention):
    """The attention backend of a layered forward.

    The packed queries are, for each row, all of its positions and then its shadow queries. A layer handles
    those of all rows together; the host reads nothing of it.
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
        rows = [meta.row for meta in self.metas]
        sizes = [len(meta.position_ids) for meta in self.metas]
        store.reserve(max(sizes, default=0))
        places = np.concatenate([np.arange(size) for size in sizes])
        slots = np.repeat(rows, sizes) * store.positions + places
        self.rows, self.places, self.slots = upload(
            np.stack((np.repeat(rows, sizes), places, slots)), device
        )
        """Of each packed query: its row and position in the store, and both as one number."""
        layers = [item.layers for item in self.items]
        self.parts = [
            LayerPart(row_selections(self.metas, layers, is_first), block_size, device)
            for is_first in (True, False)
        ]

    def _groups(self, block_size: int | None) -> list[RowGroup]:
        """Return none: the calls of `parts` take their place."""
        return []

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """Apply a residual block to the states `(N, D)`, recomputing only some of its outputs."""
        index = layer.attn.layer
        part = self.parts[min(index, 1)]
        normed = layer.attn_norm(x)
        at = self._project(part.selection, layer, normed)
        q, k = layer.attn.queries_and_keys(_at(normed, at), rotary if at is None else rotary.at(at))
        places, slots = _at(self.places, at), _at(self.slots, at)
        keys, values = self.features.keys[index], self.features.values[index]
        keys[_at(self.rows, at), :, places] = k
        outputs = [call.attend(q, keys, values, places) for call in part.calls]
        heads = q if not outputs else outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        added = layer.attn.output(heads)
        x = x + self._store(self.features.attn_outputs[index], at, slots, added)
        added = layer.ffn(layer.ffn_norm(_at(x, at)))
        return x + self._store(self.features.ffn_outputs[index], at, slots, added)

    def _project(self, selection: LayerSelection, layer: Layer, normed_ND: Tensor) -> Tensor | None:
        """Store the values of the projected queries and return those to recompute; None: all, in order."""
        at, stored = selection.projected, self.features.values[layer.attn.layer]
        new = layer.attn.values(_at(normed_ND, at))
        rows, places = _at(self.rows, at), _at(self.places, at)
        similarity, count = None, selection.num_compared
        if count:
            old = stored[rows[:count], :, places[:count]]
            similarity = self._similarity(new[:count].flatten(1), old.flatten(1))
        stored[rows, :, places] = new
        return selection.choose(similarity)

    def _similarity(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the cosine similarity of rows in float32, over the heads of all ranks."""
        a, b = new.float(), old.float()
        if self.ranks.size == 1:
            return F.cosine_similarity(a, b, dim=-1)
        dot, new_square, old_square = self.ranks.sum(
            torch.stack(((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)))
        )
        similarity: Tensor = dot / (new_square * old_square).sqrt().clamp(min=1e-8)
        return similarity

    def _store(self, stored: Tensor, at: Tensor | None, slots: Tensor, new: Tensor) -> Tensor:
        """Write the new outputs and return those of all queries, `(N, D)`."""
        flat = stored.view(-1, stored.shape[-1])
        flat.index_copy_(0, slots, new)
        return new if at is None else flat.index_select(0, self.slots)


def _at(packed: Tensor, queries: Tensor | None) -> Tensor:
    """Return a packed tensor's entries of some queries; None: all."""
    return packed if queries is None else packed[queries]
