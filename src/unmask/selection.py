"""Rules that turn scores into a set of slots to commit; decoders are made of these.

Scores are one number a candidate, larger is surer, candidates in ascending slot order. Every rule
breaks ties towards the lowest slot and chooses at least one of a non-empty set of candidates.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Floats, Ints


def quota_schedule(num_open: int, steps: int) -> tuple[int, ...]:
    """How many slots each of `steps` forwards commits: as even as possible, the larger ones first.

    Source: LLaDA `get_num_transfer_tokens`. Sums to `num_open`; ends in zeros when steps > num_open.
    """
    base, more = divmod(num_open, steps)
    return tuple(base + (t < more) for t in range(steps))


def ranking(scores: Floats) -> Ints:
    """Indices from the surest candidate to the least sure."""
    order: Ints = np.argsort(-scores, kind="stable").astype(np.int64)
    return order


def quota(scores: Floats, k: int) -> Ints:
    """The `k` surest candidates, or all when there are fewer."""
    return ranking(scores)[: max(1, k)]


def threshold(scores: Floats, confidence: Floats, tau: float) -> Ints:
    """Every candidate with `confidence >= tau`, and the surest one in any case.

    Source: Fast-dLLM, arXiv:2505.22618, Algorithm 1.
    """
    passed = np.flatnonzero(confidence >= tau)
    return passed if len(passed) else ranking(scores)[:1]


def factor(scores: Floats, doubt: Floats, phi: float, *, compat: bool = False) -> Ints:
    """The longest run of top ranks r = 1, 2... with `(r + 1) * doubt_(r) < phi`, at least one.

    Source: Fast-dLLM, arXiv:2505.22618, Theorem 1 and its factor rule. `compat` repeats the published
    loop, which also commits a last rank that fails (and so always both of two candidates).
    """
    order = ranking(scores)
    ranks = np.arange(1, len(order) + 1)
    holds = (ranks + 1) * doubt[order] < phi
    holds[0] = True
    length = len(order) if holds.all() else int(np.argmin(holds))
    if compat and length == len(order) - 1:
        length += 1
    return order[:length]
