"""EB-Sampler, written naively in float64: as many tokens as an entropy budget allows.

Source: arXiv:2505.24857, Eq. 2 and Algorithm 1, applied block by block. Candidates of the block are
ordered by an error proxy; the longest prefix with (sum of entropies) - (largest entropy) <= gamma is
committed, at least its first. Entropies are of the whole vocabulary, in nats.
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


def entropy(row: torch.Tensor) -> float:
    """-sum p ln p of a row of logits; a token of probability 0 adds nothing."""
    log_p = torch.log_softmax(row, dim=-1)
    p = torch.exp(log_p)
    return -float((p[p > 0] * log_p[p > 0]).sum())


def margin(probs: torch.Tensor) -> float:
    """The lead of the likeliest token over the next, whether or not they may be proposed."""
    first, second = sorted(probs.tolist(), reverse=True)[:2]
    return first - second


def sureness(order: str, probs: torch.Tensor, token: int, row_entropy: float) -> float:
    """What orders the candidates, the largest first."""
    if order == "confidence":
        return float(probs[token])
    if order == "entropy":
        return -row_entropy
    assert order == "margin", order
    return margin(probs)


def budget_prefix(entropies: list[float], gamma: float) -> int:
    """The length of the longest prefix within the budget, at least 1."""
    n = 1
    while n < len(entropies):
        prefix = entropies[: n + 1]
        if sum(prefix) - max(prefix) > gamma:
            break
        n += 1
    return n


def decode(
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    gamma: float,
    order: str,
    mask_id: int,
    forbidden: set[int],
) -> Trace:
    """The commits of each forward. `order` is "confidence", "entropy" or "margin"."""
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: Trace = []
    for start in range(len(prompt), length, block_length):
        block = range(start, start + block_length)
        while any(undecided[i] for i in block):
            logits = logits_fn(ids)
            scored = []
            for i in block:
                if undecided[i]:
                    token = best(logits[i], forbidden)
                    h = entropy(logits[i])
                    score = sureness(order, torch.softmax(logits[i], dim=-1), token, h)
                    scored.append((score, i, token, h))
            scored.sort(key=lambda item: (-item[0], item[1]))
            kept = scored[: budget_prefix([item[3] for item in scored], gamma)]
            for _, i, token, _ in kept:
                ids[i] = token
                undecided[i] = False
            trace.append(sorted((i, token) for _, i, token, _ in kept))
    return trace
