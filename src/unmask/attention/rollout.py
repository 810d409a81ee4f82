"""How much each position mattered to a forward: attention rollout by vectors.

Source: attention rollout (arXiv:2005.00928) as d2Cache uses it (arXiv:2509.23094):
the product of the layers' `(attention + identity) / 2`, summed over the positions that look. The column
sums of a product need no product: they go through the layers as one vector, from the last to the first, and
a position that was not computed keeps its share.

Letters: n queries, T positions, H and G heads, A head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 24


def head_mean(q_nHA: Tensor, keys_GTA: Tensor, visible_nT: Tensor | None) -> Tensor:
    """`(n, T)` attention probabilities, averaged over the heads, in parts of bounded memory."""
    heads, groups = q_nHA.shape[1], keys_GTA.shape[0]
    keys = keys_GTA.repeat_interleave(heads // groups, dim=0) if heads != groups else keys_GTA
    positions = keys.shape[1]
    most = max(1, SCORES_AT_ONCE // max(1, heads * positions))
    parts = []
    for start in range(0, len(q_nHA), most):
        q = q_nHA[start : start + most].transpose(0, 1)
        scores = torch.matmul(q, keys.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        if visible_nT is not None:
            scores = scores.masked_fill(~visible_nT[start : start + most], -torch.inf)
        parts.append(scores.softmax(dim=-1).mean(dim=0).to(keys.dtype))
    return torch.cat(parts)


def rollout(maps: list[Tensor], queries: Tensor, num_positions: int) -> Tensor:
    """`(T,)` float32: the column sums of the rolled-out attention, which sum to T.

    `maps`: `(n, T)` a layer, rows are the positions `queries`; other positions looked at themselves only.
    """
    shares = torch.ones(num_positions, device=queries.device)
    for seen in reversed(maps):
        given = shares[queries] / 2
        shares = shares.index_copy(0, queries, given) + given @ seen.float()
    return shares
