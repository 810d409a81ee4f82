"""Dream's `diffusion_generate` at temperature 0, written naively in float64.

Source: Dream, arXiv:2508.15487, the released `diffusion_generate`. There are no blocks: each step scores
every undecided position of the canvas and commits the schedule's number of them, the surest first.

The schedule is the published float32 arithmetic, truncated, so that with as many steps as tokens the
first step commits nothing and the last two.
Differs: the number of masks is the sequence's own, not the batch's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Trace = list[list[tuple[int, int]]]


def best(row: torch.Tensor, forbidden: set[int]) -> int:
    """The largest number's index outside `forbidden`; the lowest index wins a tie."""
    allowed = row.clone()
    allowed[sorted(forbidden)] = -math.inf
    return int((allowed == allowed.max()).nonzero()[0])


def quota(num_masks: int, t: int, steps: int, eps: float) -> int:
    """How many positions step t of `steps` commits when `num_masks` are left."""
    if t == steps - 1:
        return num_masks
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float32)
    share = 1 - times[t + 1] / times[t]
    return int(torch.tensor(num_masks, dtype=torch.float32) * share)


def keep_top_p(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens whose probability exceeds `top_p`, at least the first."""
    order = sorted(range(len(row)), key=lambda v: (-float(row[v]), v))
    probs = torch.softmax(row[order], dim=-1)
    kept = row.clone()
    cumulative = 0.0
    for rank, v in enumerate(order):
        if cumulative > top_p:  # the sum before this one: the token that crosses stays
            kept[v] = torch.finfo(row.dtype).min
        cumulative += float(probs[rank])
    return kept


def keep_top_k(row: torch.Tensor, top_k: int) -> torch.Tensor:
    """The `top_k` largest logits and every one equal to the least of them."""
    least = sorted(row.tolist(), reverse=True)[min(top_k, len(row)) - 1]
    kept = row.clone()
    kept[row < least] = torch.finfo(row.dtype).min
    return kept


def margin(probs: torch.Tensor) -> float:
    """The lead of the likeliest token over the next, whether or not they may be proposed."""
    first, second = sorted(probs.tolist(), reverse=True)[:2]
    return first - second


def sureness(alg: str, probs: torch.Tensor, token: int) -> float:
    """What orders the positions, the largest first."""
    if alg == "maskgit_plus":
        return float(probs[token])
    if alg == "topk_margin":
        return margin(probs)
    assert alg == "entropy", alg
    return float((probs * torch.log(probs + 1e-10)).sum())


def decode(  # noqa: PLR0913 - the paper's arguments
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    steps: int,
    alg: str,
    mask_id: int,
    forbidden: set[int],
    eps: float = 1e-3,
    top_p: float | None = None,
    top_k: int | None = None,
    shift: bool = False,
) -> Trace:
    """The commits of each step that made some.

    With `shift`, row i - 1 of `logits_fn` answers position i (row 0 also answers position 0). The filters
    change the scores only: at temperature 0 the likeliest token always passes them.
    """
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: Trace = []
    for t in range(steps):
        k = quota(sum(undecided), t, steps, eps)
        if k == 0:
            continue
        logits = logits_fn(ids)
        scored = []
        for i in range(len(ids)):
            if undecided[i]:
                row = logits[max(i - 1, 0)] if shift else logits[i]
                token = best(row, forbidden)
                if top_p is not None and top_p < 1:
                    row = keep_top_p(row, top_p)
                if top_k is not None:
                    row = keep_top_k(row, top_k)
                scored.append((sureness(alg, torch.softmax(row, dim=-1), token), i, token))
        scored.sort(key=lambda item: (-item[0], item[1]))
        for _, i, token in scored[:k]:
            ids[i] = token
            undecided[i] = False
        trace.append(sorted((i, token) for _, i, token in scored[:k]))
    return trace
