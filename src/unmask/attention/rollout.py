"""Importance of each position for a forward: attention rollout by vectors.

Source: attention rollout (arXiv:2005.00928) as in d2Cache (arXiv:2509.23094): the product of the layers'
`(attention + identity) / 2`, summed over the queries. The column sums of a product need no matrix product:
a vector of ones goes through the layers from the last to the first. A position that was not computed has
an identity row.

Letters: b rows, n queries, K keys, T positions, H query heads, G key/value heads, A head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.models.transformer import fold_groups

MAX_SCORES = 1 << 24
"""Attention scores computed at a time on the CPU: 64 MB in float32."""
MAX_DEVICE_SCORES = 1 << 26
"""The same elsewhere."""


def weighted_attention(
    q_bnHA: Tensor, keys_bGKA: Tensor, values_bGKA: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the attention output `(b, n, H, A)` and probabilities `(b, n, K)`, averaged over the heads.

    `hidden` is True for keys that a query does not see, `(b, 1, n, K)`. Works in parts of bounded memory;
    scores are rounded to the dtype of the queries, and their softmax is float32.
    """
    batch, count, heads, width = q_bnHA.shape
    groups, num_keys = keys_bGKA.shape[1:3]
    most = MAX_SCORES if q_bnHA.device.type == "cpu" else MAX_DEVICE_SCORES
    size = max(1, most // max(1, batch * heads * num_keys))
    outputs, means = list[Tensor](), list[Tensor]()
    for start in range(0, max(1, count), size):
        part = q_bnHA[:, start : start + size]
        shape = (batch, groups, heads // groups, part.shape[1])
        q = fold_groups(part, heads // groups)
        scores = torch.matmul(q, keys_bGKA.transpose(2, 3)).float().mul_(width**-0.5)
        scores = scores.view(*shape, num_keys)
        if hidden is not None:
            scores.masked_fill_(hidden[:, :, None, start : start + size], -torch.inf)
        weights = scores.softmax(dim=-1)
        means.append(weights.flatten(1, 2).mean(dim=1).to(keys_bGKA.dtype))
        output = torch.matmul(weights.flatten(2, 3).to(values_bGKA.dtype), values_bGKA)
        split = output.view(*shape, width)
        outputs.append(split.permute(0, 3, 1, 2, 4).flatten(2, 3))
    if len(outputs) == 1:
        return outputs[0], means[0]
    return torch.cat(outputs, dim=1), torch.cat(means, dim=1)


def rollout(weights: list[Tensor], queries_bn: Tensor, num_positions: int) -> Tensor:
    """Return the column sums `(b, T)` of the rolled-out attention, float32; those of a row sum to T.

    `weights` has one `(b, n, T)` tensor per layer; its rows belong to the positions `queries_bn`, and
    nothing to the position T.
    """
    sums = torch.ones(len(queries_bn), num_positions + 1, device=queries_bn.device)
    sums[:, num_positions] = 0.0
    for layer_weights in reversed(weights):
        half = sums.gather(1, queries_bn) / 2
        sums = sums.scatter(1, queries_bn, half)
        sums[:, :num_positions] += torch.bmm(half[:, None], layer_weights.float())[:, 0]
    return sums[:, :num_positions]
