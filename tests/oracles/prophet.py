"""Prophet, written naively in float64: LLaDA's sampler that stops once the answer is settled.

Source: arXiv:2508.19982, Algorithm 1, the published code's rule. Before forward s (counted from 1)
commits, the gap of the answer's five positions - largest minus second largest raw logit of the whole
vocabulary, averaged - is compared with a threshold that falls with s / steps. When it is reached, every
undecided position of the canvas takes its best token and decoding ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Trace = list[list[tuple[int, int]]]

ANSWER_LENGTH = 5  # the published code parses another length and then does not use it


def best(row: torch.Tensor, forbidden: set[int]) -> int:
    """The largest number's index outside `forbidden`; the lowest index wins a tie."""
    allowed = row.clone()
    allowed[sorted(forbidden)] = -math.inf
    return int((allowed == allowed.max()).nonzero()[0])


def mean_gap(logits: torch.Tensor, span: range) -> float:
    """The mean over `span` of the largest minus the second largest logit."""
    gaps = []
    for i in span:
        first, second = sorted(logits[i].tolist(), reverse=True)[:2]
        gaps.append(first - second)
    return sum(gaps) / len(gaps)


def gap_threshold(progress: float, thresholds: tuple[float, float, float]) -> float:
    early, mid, late = thresholds
    if progress < 0.33:
        return early
    return mid if progress < 0.67 else late


def decode(  # noqa: PLR0913 - the paper's arguments
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    steps: int,
    answer_start: int,
    gap_thresholds: tuple[float, float, float],
    mask_id: int,
    forbidden: set[int],
    constraints: dict[int, int] | None = None,
) -> Trace:
    """The commits of each forward that made some; `answer_start` counts from the prompt's end.

    `constraints` are tokens that are there from the start, by offset from the prompt's end. A block's steps
    share what is open of it when it begins; they count as steps even if nothing is left for them.

    The answer's positions are read whether they are decided or not. A span that would leave the canvas
    is cut at its end. A step with quota 0 commits nothing but may still find the answer settled.
    """
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    for offset, token in (constraints or {}).items():
        ids[len(prompt) + offset], undecided[len(prompt) + offset] = token, False
    trace: Trace = []
    answer = len(prompt) + answer_start
    span = range(answer, min(answer + ANSWER_LENGTH, length))
    per_block = steps // (gen_length // block_length)
    s = 0
    for start in range(len(prompt), length, block_length):
        size = sum(undecided[start : start + block_length])
        for t in range(per_block):
            s += 1
            logits = logits_fn(ids)
            if mean_gap(logits, span) >= gap_threshold(s / steps, gap_thresholds):
                left = [i for i in range(length) if undecided[i]]
                if left:
                    trace.append([(i, best(logits[i], forbidden)) for i in left])
                return trace
            scored = []
            for i in range(start, start + block_length):
                if undecided[i]:
                    token = best(logits[i], forbidden)
                    c = float(torch.softmax(logits[i], dim=-1)[token])
                    scored.append((c, i, token))
            scored.sort(key=lambda item: (-item[0], item[1]))
            kept = scored[: size // per_block + (t < size % per_block)]
            for _, i, token in kept:
                ids[i] = token
                undecided[i] = False
            if kept:
                trace.append(sorted((i, token) for _, i, token in kept))
    return trace
