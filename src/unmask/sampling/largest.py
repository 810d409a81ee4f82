"""The largest values of wide rows, in less time than one pass of `topk` or `argmax` over them takes.

On a CPU both go through a row number by number. Here the maxima of groups of columns are found first, which
takes a vectorized pass, and the numbers of the groups with the largest maxima are all that is ordered: a
number among the k largest of a row lies in one of the k groups with the largest maxima, or equals the least
of the k. So the values are those of `topk`, ties and NaN included. 32 rows of 126,464 logits, one thread:
1,000 largest in 0.53 of its time, 2 in 0.34, argmax in 0.25 (`benchmarks/packed_weights.py sampling`).

Letters: N rows, V columns, G groups, S columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 16
"""Columns of a group of `largest_values`: the fastest of 4 to 32 for 500 and 1,000 of 126,464 values,
and of 8 to 128 for 2 and 16."""
ARGMAX_GROUP = 352
"""Columns of a group of `first_largest`, which makes about as many groups of a wide row."""
LEAST_GROUPS = 4
"""Smallest number of groups, as a multiple of the wanted values, that is worth the second stage."""


def largest_values(values_NV: Tensor, count: int) -> Tensor:
    """Return the `count` largest values of each row in descending order, NaN first: `(N, count)`."""
    num_rows, width = values_NV.shape
    num_groups = width // GROUP
    if values_NV.device.type != "cpu" or num_groups < LEAST_GROUPS * count or num_rows == 0:
        return values_NV.topk(count, dim=-1).values
    rest = num_groups * GROUP
    grouped_NSG = values_NV[:, :rest].view(num_rows, GROUP, num_groups)
    chosen = grouped_NSG.amax(dim=1).topk(count, dim=-1, sorted=False).indices
    among = grouped_NSG.gather(2, chosen[:, None].expand(-1, GROUP, -1)).flatten(1)
    if rest < width:
        among = torch.cat((among, values_NV[:, rest:]), dim=1)
    return among.topk(count, dim=-1).values


def first_largest(values_NV: Tensor) -> Tensor:
    """Return the column of the largest value of each row, `(N,)`: the lowest of equal ones, a NaN first."""
    num_rows, width = values_NV.shape
    num_groups = width // ARGMAX_GROUP
    if values_NV.device.type != "cpu" or num_groups < 2 or num_rows == 0:
        return values_NV.argmax(dim=-1)
    rest = num_groups * ARGMAX_GROUP
    grouped_NGS = values_NV[:, :rest].view(num_rows, num_groups, ARGMAX_GROUP)
    maxima = grouped_NGS.amax(dim=2)
    if rest < width:
        maxima = torch.cat((maxima, values_NV[:, rest:].amax(dim=1, keepdim=True)), dim=1)
    group = maxima.argmax(dim=-1)
    columns = group[:, None] * ARGMAX_GROUP + torch.arange(ARGMAX_GROUP)
    inside = columns.clamp(
        max=width - 1
    )  # repeats the last column, which is not the first of its equals
    return columns[:, 0] + values_NV.gather(1, inside).argmax(dim=-1)
