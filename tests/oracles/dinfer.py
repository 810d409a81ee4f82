"""dInfer's hierarchical and credit decoders, written naively in float64 for one sequence, without a cache.

Source: arXiv:2510.08666, Section 3.2. Blocks of a fixed canvas, left to right, each until it is full.
"""

from __future__ import annotations

import torch

from .network import LogitsFn, read, surest_first


def runs(positions: list[int]) -> list[list[int]]:
    """Maximal runs of neighboring positions."""
    found: list[list[int]] = []
    for p in sorted(positions):
        if found and found[-1][-1] == p - 1:
            found[-1].append(p)
        else:
            found.append([p])
    return found


def keep_hierarchical(scores: dict[int, float], low: float, high: float) -> list[int]:
    """The surest of each run if above `low`, all above `high`, and the surest of all."""
    kept = {surest_first(scores)[0]} | {p for p in scores if scores[p] > high}
    for run in runs(list(scores)):
        best = surest_first({p: scores[p] for p in run})[0]
        if scores[best] > low:
            kept.add(best)
    return sorted(kept)


def keep_threshold(scores: dict[int, float], tau: float) -> list[int]:
    """All that reach tau; where none does, those within 1e-5 of the surest."""
    floor = min(tau, max(scores.values()) - 1e-5)
    return sorted(p for p in scores if scores[p] >= floor)


def decode(  # noqa: PLR0913 - the decoders' knobs
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    mask_id: int,
    forbidden: set[int],
    *,
    method: str,
    threshold: float = 0.9,
    low_threshold: float = 0.4,
    credit_alpha: float = 0.7,
    credit_gamma: float = 0.2,
    credit_beta: float = 0.8,
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas; `method` is "hierarchical" or "credit". An entry: `committed`."""
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: list[dict] = []
    for start in range(len(prompt), length, block_length):
        block = range(start, min(start + block_length, length))
        credit: torch.Tensor | None = None
        while any(undecided[p] for p in block):
            rows = logits_fn(ids)
            positions = [p for p in block if undecided[p]]
            if method == "credit":
                if credit is None:
                    credit = torch.zeros(len(block), rows.shape[1], dtype=torch.float64)
                else:
                    credit = credit * credit_beta
                fused = rows.clone()
                for p in positions:
                    token, probability = read(rows[p], forbidden)
                    credit[p - start, token] += probability**credit_gamma
                    fused[p] = rows[p] + credit_alpha * torch.log(1 + credit[p - start])
                rows = fused
            both = {p: read(rows[p], forbidden) for p in positions}
            scores = {p: both[p][1] for p in positions}
            if method == "credit":
                kept = keep_threshold(scores, threshold)
            else:
                kept = keep_hierarchical(scores, low_threshold, threshold)
            for p in kept:
                ids[p], undecided[p] = both[p][0], False
            trace.append({"committed": [(p, both[p][0]) for p in kept]})
    return trace, ids
