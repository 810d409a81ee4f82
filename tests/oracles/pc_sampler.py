"""PC-Sampler, written naively in float64: position-aware weighting times calibrated confidence.

Source: arXiv:2508.13021, Eq. 3 to 6 (the published code's rule). Score of open position i of the block,
whose distance from the block's start is j: exp(-lambd * j) * C, C = min(alpha, -p(x) ln(f(x) + 1e-9)).
Differs: compares ln C - lambd * j, the same order, because the product underflows far from the start.

With lambd = 0 everything at the bound alpha is tied. The code gives the block's scores, -inf where a token
is decided, to `torch.topk`, whose order of equals is no rule of the paper but decides the text.
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


def log_score(p: float, count: int, total: int, alpha: float) -> float:
    """ln C; a token that the corpus never saw counts as seen once. C <= 0 is the worst there is."""
    f = max(count, 1) / total
    calibrated = min(alpha, -p * math.log(f + 1e-9))
    return math.log(calibrated) if calibrated > 0 else -math.inf


def decode(  # noqa: PLR0913 - the paper's arguments
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    steps: int,
    lambd: float,
    alpha: float,
    counts: dict[int, int],
    total: int,
    mask_id: int,
    forbidden: set[int],
) -> Trace:
    """The commits of each forward. `counts` and `total` are the corpus' token counts and their sum."""
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: Trace = []
    per_block = steps // (gen_length // block_length)
    for start in range(len(prompt), length, block_length):
        for t in range(per_block):
            quota = block_length // per_block + (t < block_length % per_block)
            if quota == 0:
                continue
            probs = torch.softmax(logits_fn(ids), dim=-1)
            scored = []
            for i in range(start, start + block_length):
                if undecided[i]:
                    token = best(probs[i], forbidden)
                    c = log_score(float(probs[i, token]), counts.get(token, 0), total, alpha)
                    scored.append((c - lambd * (i - start), i, token))
            scored.sort(key=lambda item: (-item[0], item[1]))
            if lambd == 0:
                row = torch.full((block_length,), -math.inf, dtype=torch.float64)
                for c, i, _ in scored:
                    row[i - start] = c
                first = [start + int(j) for j in torch.topk(row, quota).indices]
                scored.sort(key=lambda item: item[1] not in first)
            for _, i, token in scored[:quota]:
                ids[i] = token
                undecided[i] = False
            trace.append(sorted((i, token) for _, i, token in scored[:quota]))
    return trace
