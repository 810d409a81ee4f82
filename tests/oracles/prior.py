"""The certainty prior of d2Cache's decoder, written naively in float64: near to what is known first.

Source: d2Cache, arXiv:2509.23094, Eq. 3 (certainty prior). LLaDA's sampler with the score c * D:
confidence times the density of known positions around i, a Gaussian of width sigma over the canvas
[G known | generated part | tail].
Differs: sums directly in float64; the published float32 FFT is noise below about 1e-7.
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


def density(known: list[bool], sigma: float) -> list[float]:
    """D of each position of the generated part, in 0..1.

    The G positions before it stand for the prompt; the G after it are as known as its last position.
    Every position of this line of 3 G counts, whatever its distance; the kernel's full sum is that of
    the published transform, over the distances -3 G to 3 G - 1.
    """
    size = len(known)
    line = [True] * size + known + [known[-1]] * size

    def kernel(d: int) -> float:
        return math.exp(-d * d / (2 * sigma * sigma))

    total = math.fsum(kernel(d) for d in range(-3 * size, 3 * size))
    return [
        math.fsum(kernel(i - j) for j, is_known in enumerate(line) if is_known) / total
        for i in range(size, 2 * size)
    ]


def decode(
    logits_fn: Callable[[list[int]], torch.Tensor],
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    steps: int,
    sigma: float,
    mask_id: int,
    forbidden: set[int],
) -> Trace:
    """The commits of each forward."""
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
            prior = density([not flag for flag in undecided[len(prompt) :]], sigma)
            scored = []
            for i in range(start, start + block_length):
                if undecided[i]:
                    token = best(probs[i], forbidden)
                    score = float(probs[i, token]) * prior[i - len(prompt)]
                    scored.append((score, i, token))
            scored.sort(key=lambda item: (-item[0], item[1]))
            for _, i, token in scored[:quota]:
                ids[i] = token
                undecided[i] = False
            trace.append(sorted((i, token) for _, i, token in scored[:quota]))
    return trace
