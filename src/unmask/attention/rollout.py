"""Importance of each position for a forward: attention rollout by vectors.

Source: attention rollout (arXiv:2005.00928) as in d2Cache (arXiv:2509.23094): the product of the layers'
`(attention + identity) / 2`, summed over the queries. The column sums of a product need no matrix product:
a vector of ones goes through the layers from the last to the first. A position that was not computed has
an identity row.

Letters: n queries, T positions, H query heads, G key/value heads, A head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SCORES = 1 << 24
"""Attention scores computed at a time: 64 MB in float32."""


def head_mean(q_nHA: Tensor, keys_GTA: Tensor, visible_nT: Tensor | None) -> Tensor:
    """Return attention probabilities `(n, T)`, averaged over the heads, in parts of bounded memory."""
    heads, groups = q_nHA.shape[1], keys_GTA.shape[0]
    keys = keys_GTA.repeat_interleave(heads // groups, dim=0) if heads != groups else keys_GTA
    positions = keys.shape[1]
    size = max(1, MAX_SCORES // max(1, heads * positions))
    parts = []
    for start in range(0, len(q_nHA), size):
        q = q_nHA[start : start + size].transpose(0, 1)
        scores = torch.matmul(q, keys.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        if visible_nT is not None:
            scores = scores.masked_fill(~visible_nT[start : start + size], -torch.inf)
        parts.append(scores.softmax(dim=-1).mean(dim=0).to(keys.dtype))
    return torch.cat(parts)


def rollout(weights: list[Tensor], queries: Tensor, num_positions: int) -> Tensor:
    """Return the column sums `(T,)` of the rolled-out attention, float32; they sum to T.

    `weights` has one `(n, T)` tensor per layer; its rows belong to the positions `queries`.
    """
    sums = torch.ones(num_positions, device=queries.device)
    for layer_weights in reversed(weights):
        half = sums[queries] / 2
        sums = sums.index_copy(0, queries, half) + half @ layer_weights.float()
    return sums
