"""Selection rules: from the scores of candidates to the positions to commit.

There is one score per candidate, in ascending order of position; larger is more confident. Rules return
indices of candidates. Every rule breaks ties in favor of the lowest position, and selects at least one of a
non-empty set of candidates.
"""

from __future__ import annotations

import functools

import numpy as np

from unmask.canvas import Bools, Floats, Ints


def quota_schedule(num_open: int, steps: int) -> tuple[int, ...]:
    """Return the number of positions to commit in each of `steps` forwards: even, the remainder first.

    They sum to `num_open`; the last ones are 0 when steps > num_open. Source: `get_num_transfer_tokens` of
    LLaDA.
    """
    base, remainder = divmod(num_open, steps)
    return tuple(base + (t < remainder) for t in range(steps))


def ranking(scores: Floats) -> Ints:
    """Return the candidates' indices by descending score."""
    order: Ints = np.argsort(-scores, kind="stable").astype(np.int64)
    return order


def leading(scores: Floats, k: int) -> Ints:
    """Return `ranking(scores)[:k]` without sorting the others; no score is nan."""
    if k >= len(scores):
        return ranking(scores)
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    best = np.flatnonzero(scores >= lowest)
    order: Ints = best[ranking(scores[best])[:k]]
    return order


def quota(scores: Floats, k: int) -> Ints:
    """Select the `k` candidates with the highest scores, or all when there are fewer."""
    return ranking(scores)[: max(1, k)]


def topk_order(scores: Floats, k: int) -> Ints:
    """Return the `k` highest scores' indices, equal scores in the order of `torch.topk` on the CPU.

    This order is not that of the positions, and depends on all scores and on `k`.
    """
    import torch

    chosen: Ints = torch.topk(torch.from_numpy(scores), k).indices.numpy()
    return chosen


def threshold(
    scores: Floats, confidence: Floats, tau: float, least: int = 1, *, strict: bool = False
) -> Ints:
    """Select all candidates with `confidence >= tau`, or the `least` best ones when fewer have it.

    `strict`: `confidence > tau` instead. Source: Fast-dLLM, arXiv:2505.22618, Algorithm 1; with `least`,
    LLaDA2.0, arXiv:2512.15745.
    """
    passed: Ints = (confidence > tau if strict else confidence >= tau).nonzero()[0]
    if len(passed) >= min(least, len(scores)):
        return passed
    return np.array([scores.argmax()]) if least == 1 else ranking(scores)[:least]


def factor(scores: Floats, doubt: Floats, phi: float, *, compat: bool = False) -> Ints:
    """Select the longest run of top ranks r = 1, 2... with `(r + 1) * doubt_(r) < phi`, at least one.

    Source: Fast-dLLM, arXiv:2505.22618, Theorem 1 and its factor rule. `compat` reproduces the published
    loop, which also commits the last rank when only this one fails (so always both of two candidates).
    """
    order = ranking(scores)
    ranks = np.arange(1, len(order) + 1)
    within = (ranks + 1) * doubt[order] < phi
    within[0] = True
    length = len(order) if within.all() else int(np.argmin(within))
    if compat and length == len(order) - 1:
        length += 1
    return order[:length]


def entropy_budget(scores: Floats, entropy: Floats, gamma: float) -> Ints:
    """Select the longest run of top ranks with sum(entropy) - max(entropy) <= `gamma`, at least one.

    Source: EB-Sampler, arXiv:2505.24857, Eq. 2.
    """
    order = ranking(scores)
    ranked = entropy[order]
    shared = np.cumsum(ranked) - np.maximum.accumulate(ranked)
    return order[: max(1, int((shared <= gamma).sum()))]


def run_argmax(
    positions: Ints, scores: Floats, confidence: Floats, low: float, high: float
) -> Ints:
    """Select the best of each run of adjacent positions if above `low`, all above `high`, the best of all.

    The indices ascend. Source: dInfer, arXiv:2510.08666, hierarchical decoding.
    """
    chosen = confidence > high
    starts = np.flatnonzero(np.diff(positions, prepend=positions[0] - 2) != 1)
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        best = start + int(np.argmax(scores[start:end]))
        chosen[best] |= confidence[best] > low
    chosen[int(np.argmax(scores))] = True
    indices: Ints = np.flatnonzero(chosen)
    return indices


@functools.lru_cache(maxsize=64)
def _kernel(sigma: float, size: int) -> tuple[Floats, Floats, float]:
    """Return k(d) = exp(-d^2 / 2 sigma^2) for |d| < size, sums of it over d >= 0..2 size, and its total.

    Sums start with the smallest terms, so that those far from 0 are accurate. The total is that of
    -3 size <= d < 3 size.
    """
    with np.errstate(over="ignore"):  # of tiny widths
        near = np.exp(-0.5 * (np.arange(3 * size + 1) / sigma) ** 2)
    sums: Floats = np.cumsum(near[2 * size :: -1])[::-1]
    kernel: Floats = np.concatenate((near[size - 1 : 0 : -1], near[:size]))
    return kernel, sums, float(2 * near[1 : 3 * size].sum() + near[0] + near[3 * size])


def certainty_density(known: Bools, sigma: float) -> Floats:
    """Return the share of a Gaussian around each position of the answer that covers decided positions.

    `known`: decided positions of the answer, at least one position. It is extended to three times its
    length: as many positions left of it count as decided, and those right of it have the state of the last
    one; beyond, nothing is. The larger `sigma`, the more equal the densities. Source: d2Cache,
    arXiv:2509.23094, Eq. 3, and its code. Differs: summed directly in float64; the published float32 FFT is
    noise below about 1e-7.
    """
    size = len(known)
    kernel, sums, total = _kernel(sigma, size)
    inside = np.convolve(known.astype(np.float64), kernel, mode="valid")
    covered = inside + (sums[1 : size + 1] - sums[size + 1 : 2 * size + 1])
    if known[-1]:
        covered += (sums[1 : size + 1] - sums[size + 1 : 2 * size + 1])[::-1]
    density: Floats = covered / total
    return density
