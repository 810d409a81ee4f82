"""Speculation by lookup over Fast-dLLM's threshold rule, written naively in float64.

Source: `unmask.decoders.speculative`'s description: behind every run of decided text that ends like an
earlier place, draft what followed there; commit what the threshold rule commits, and every position of the
block whose draft is the model's choice with at least the accepting confidence.
"""

from __future__ import annotations

import math


def continuation(ids: list[int], undecided: list[bool], position: int, ngram: int) -> list[int]:
    """What followed the latest earlier place whose `ngram` last tokens are those before `position`."""
    if position < ngram or any(undecided[position - ngram : position]):
        return []
    words = ids[position - ngram : position]
    for place in range(position - 1, ngram - 1, -1):
        if undecided[place] or any(undecided[place - ngram : place]):
            continue
        if ids[place - ngram : place] != words:
            continue
        found = []
        for source in range(place, position):
            target = position + source - place
            if undecided[source] or target >= len(ids) or not undecided[target]:
                break
            found.append(ids[source])
        return found
    return []


def decode(  # noqa: PLR0913 - the method's knobs
    logits_fn,
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    threshold: float,
    accept_threshold: float,
    ngram: int,
    mask_id: int,
    forbidden: set[int],
) -> list[list[tuple[int, int]]]:
    """(position, token) pairs of every forward."""
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace = []
    for start in range(len(prompt), len(ids), block_length):
        block = range(start, start + block_length)
        while any(undecided[i] for i in block):
            rows = logits_fn(ids)
            chosen: dict[int, tuple[int, float]] = {}
            for i in block:
                if undecided[i]:
                    row = rows[i].tolist()
                    token = max(
                        (v for v in range(len(row)) if v not in forbidden), key=row.__getitem__
                    )
                    top = max(row)
                    total = sum(math.exp(x - top) for x in row)
                    chosen[i] = (token, math.exp(row[token] - top) / total)
            draft: dict[int, int] = {}
            for i in block:
                if undecided[i] and not undecided[i - 1]:
                    for k, token in enumerate(continuation(ids, undecided, i, ngram)):
                        draft[i + k] = token
            commit = {i for i, (_, p) in chosen.items() if p >= threshold}
            commit = commit or {min(chosen, key=lambda i: (-chosen[i][1], i))}
            for i, (token, p) in chosen.items():
                if draft.get(i) == token and p >= accept_threshold:
                    commit.add(i)
            for i in commit:
                ids[i], undecided[i] = chosen[i][0], False
            trace.append([(i, chosen[i][0]) for i in sorted(commit)])
    return trace
