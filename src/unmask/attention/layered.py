"""A forward whose layers compute only what moved, and keep their outputs for the rest.

Source: dLLM-Cache, arXiv:2506.06295 (V-verify). A layer projects the values of the response, and where they
are least like the kept ones (cosine), query, key, attention and feed-forward are computed again;
everywhere else the layer adds what it added before. So every position has a state, some of them old.

Letters: N queries of all rows, n positions and shadows of one, m of them chosen, D width.
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
from unmask.kv.dense_store import DenseStore
from unmask.models.ranks import ALONE, Ranks
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Layer, Rotary, attention


class FeatureStore(DenseStore):
    """A store that also keeps what attention and feed-forward added, `(rows, 1, positions, D)` a layer."""

    def __init__(
        self, spec: ModelSpec, rows: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(spec, rows, positions, dtype, device)
        shape = (rows, 1, positions, spec.d_model)
        self.attended = [torch.zeros(shape, dtype=dtype, device=device) for _ in self.keys]
        self.fed = [torch.zeros_like(each) for each in self.attended]

    @property
    def tensors(self) -> Iterator[list[Tensor]]:
        """All that is kept."""
        yield from super().tensors
        yield self.attended
        yield self.fed


@dataclass(frozen=True, slots=True)
class FeatureRowMeta:
    """A row of the forward and what its layers compute."""

    meta: RowMeta
    layers: Layers


class LayeredAttention(PackedAttention):
    """The mixing of such a forward: packed queries are all positions of each lane, then its shadows."""

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
        self.visible = [
            group.visible[i, 0] if group.visible is not None else None
            for group in self.groups
            for i in range(group.count)
        ]

    def layer(self, layer: Layer, x: Tensor, rotary: Rotary) -> Tensor:
        """One residual block, computed where it is due."""
        index = layer.attn.layer
        normed = layer.attn_norm(x)
        chosen = [self._choose(i, layer, normed) for i in range(len(self.items))]
        at = torch.cat([own + start for own, start in zip(chosen, self.starts, strict=True)])
        part, turned = normed[at], rotary.at(at)
        q, k = layer.attn.queries(part, turned), layer.attn.keys(part, turned)
        seen, first = [], 0
        for i, own in enumerate(chosen):
            rows = slice(first, first + len(own))
            first = rows.stop
            seen.append(self._attend_part(i, index, own, q[rows], k[rows]))
        added = layer.attn.output(torch.cat(seen))
        x = x + self._kept(self.features.attended[index], chosen, added)
        added = layer.ffn(layer.ffn_norm(x[at]))
        return x + self._kept(self.features.fed[index], chosen, added)

    def _choose(self, i: int, layer: Layer, normed_ND: Tensor) -> Tensor:
        """Which of a lane's positions this layer computes; their values, and the response's, are new."""
        meta, plan, size = self.items[i].meta, self.items[i].layers, self.sizes[i]
        prompt, length, index = plan.prompt_length, meta.length, layer.attn.layer
        forced = torch.from_numpy(plan.forced).to(self.device)
        every = index == 0
        first = 0 if every or plan.prompt else prompt
        valued = torch.arange(first, size, device=self.device)
        if first:
            valued = torch.cat((forced[: int((plan.forced < prompt).sum())], valued))
        new = layer.attn.values(normed_ND[valued + self.starts[i]])
        stored = self.features.values[index][meta.row]
        chosen = valued
        if not (every or plan.response):
            count = plan.num_rows(length) - (prompt if plan.prompt else 0)
            inside = len(valued) - (size - first)
            told = new[prompt - first + inside :]
            moved = self._moved(told, stored, i, count - inside)
            shadows = torch.arange(length, size, device=self.device)
            chosen = torch.cat((valued[: prompt - first + inside], moved, shadows))
        stored[:, valued] = new.transpose(0, 1)
        return chosen

    def _moved(self, new: Tensor, stored: Tensor, i: int, count: int) -> Tensor:
        """The `count` positions of the response whose values turned most; forced ones first."""
        meta, plan = self.items[i].meta, self.items[i].layers
        prompt, length = plan.prompt_length, meta.length
        old = stored[:, prompt:length].transpose(0, 1).flatten(1)
        alike = self._alike(new[: length - prompt].flatten(1), old)
        forced = plan.forced[plan.forced >= prompt] - prompt
        alike[torch.from_numpy(forced).to(self.device)] = -2.0
        return alike.topk(count, largest=False).indices.sort().values + prompt

    def _alike(self, new: Tensor, old: Tensor) -> Tensor:
        """Cosine similarity of rows, over the heads of all ranks."""
        if self.ranks.size == 1:
            return F.cosine_similarity(new, old, dim=-1)
        a, b = new.float(), old.float()
        dot, new_square, old_square = self.ranks.sum(
            torch.stack(((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)))
        )
        alike: Tensor = dot / (new_square * old_square).sqrt().clamp(min=1e-8)
        return alike

    def _attend_part(self, i: int, index: int, own: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Attention of a lane's chosen positions over all of its positions, `(m, H, A)`."""
        row, size = self.items[i].meta.row, self.sizes[i]
        keys, values = (each[index][row] for each in (self.features.keys, self.features.values))
        keys[:, own] = k.transpose(0, 1)
        visible = self.visible[i]
        seen = attention(
            q[None],
            keys[None, :, :size],
            values[None, :, :size],
            None if visible is None else visible[own],
        )
        return seen[0]

    def _kept(self, stored: Tensor, chosen: list[Tensor], added: Tensor) -> Tensor:
        """Write what is new, `(N, D)` of all that there is."""
        first = 0
        for i, own in enumerate(chosen):
            stored[self.items[i].meta.row, 0, own] = added[first : first + len(own)]
            first += len(own)
        rows = [
            stored[item.meta.row, 0, :size]
            for item, size in zip(self.items, self.sizes, strict=True)
        ]
        return torch.cat(rows)
