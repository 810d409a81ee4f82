"""KLASS, written naively in float64: commit what is confident and has stopped changing.

Source: arXiv:2511.05664, Algorithm 1, the published LLaDA rule. KL(p_now || p_before) of every position
is kept for the last H forwards. A position of the block is ready when all H are below the threshold, its
confidence is above the other, and the block has seen H forwards; both comparisons are strict. All
ready positions are committed, or, when there is none, the quota by confidence.

The history does not restart at a block: the last block's forwards count. Before the first forward the
distribution is all zeros, so that its KL is about 27 nats (ln 1e12 less the entropy).
Differs: goes on with quota 1 when the schedule has run out, until the block is full.
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


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p || q) in nats with 1e-12 added inside both logarithms."""
    return float((p * (torch.log(p + 1e-12) - torch.log(q + 1e-12))).sum())


def decode(  # noqa: PLR0913 - the paper's arguments
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    steps: int,
    threshold: float,
    kl_threshold: float,
    kl_history_length: int,
    mask_id: int,
    forbidden: set[int],
) -> Trace:
    """The commits of each forward."""
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: Trace = []
    per_block = steps // (gen_length // block_length)
    before = None
    history = [[0.0] * kl_history_length for _ in range(length)]
    for start in range(len(prompt), length, block_length):
        block = range(start, start + block_length)
        t = 0
        while any(undecided[i] for i in block):
            probs = torch.softmax(logits_fn(ids), dim=-1)
            if before is None:
                before = torch.zeros_like(probs)
            for i in range(length):
                history[i] = [*history[i][1:], divergence(probs[i], before[i])]
            before = probs
            scored = []
            for i in block:
                if undecided[i]:
                    token = best(probs[i], forbidden)
                    scored.append((float(probs[i, token]), i, token))
            scored.sort(key=lambda item: (-item[0], item[1]))
            kept = [
                (c, i, token)
                for c, i, token in scored
                if t >= kl_history_length - 1
                and c > threshold
                and all(kl < kl_threshold for kl in history[i])
            ]
            if not kept:
                quota = block_length // per_block + (t < block_length % per_block)
                kept = scored[: max(1, quota) if t < per_block else 1]
            for _, i, token in kept:
                ids[i] = token
                undecided[i] = False
            trace.append(sorted((i, token) for _, i, token in kept))
            t += 1
    return trace
