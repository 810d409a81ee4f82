"""dKV-Cache-Decode, written naively in float64: LLaDA's and Dream's samplers with delayed caching.

Source: arXiv:2505.15781, one-step delay and refresh, the published code's rule. A forward computes every
position except those that were decided before the previous forward, which keep the keys and values of the
last forward that computed them. LLaDA counts the forwards of a block: its first two compute everything, and
so does every one whose number is a multiple of `interval`. Dream has no blocks, computes everything at
multiples only, and reads position i from row i - 1: a row is left out when neither its own position nor the
one it answers was undecided in the previous forward (`shift_type` un_right), the last row with the one
before it.
"""

from __future__ import annotations

from .network import Network, read

Trace = list[list[tuple[int, int]]]


def decode(
    network: Network,
    prompt: list[int],
    gen_length: int,
    *,
    block_length: int,
    steps: int,
    interval: int,
    mask_id: int,
    forbidden: set[int],
) -> tuple[Trace, list[int]]:
    """The commits and the number of computed positions of each forward; `steps` divide evenly."""
    shift, length = network.spec.shift_logits, len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    per_block = steps // (gen_length // block_length)
    trace: Trace = []
    computed: list[int] = []
    network.forget()
    decided = set(range(len(prompt)))
    for start in range(len(prompt), length, block_length):
        before: set[int] = set()
        for t in range(per_block):
            settled = set(before)
            if shift:
                settled &= {p - 1 for p in before}
                settled |= {length - 1} if length - 2 in settled else set()
            if t % interval == 0 or (t == 1 and not shift):
                settled = set()
            positions = [p for p in range(length) if p not in settled]
            seen = network.logits(ids, positions)
            before = set(decided)
            scored = []
            for p in range(start, start + block_length):
                if p not in decided:
                    token, confidence = read(seen[p - 1 if shift else p], forbidden)
                    scored.append((-confidence, p, token))
            quota = block_length // per_block + (t < block_length % per_block)
            kept = sorted(scored)[:quota]
            for _, p, token in kept:
                ids[p] = token
                decided.add(p)
            trace.append(sorted((p, token) for _, p, token in kept))
            computed.append(len(positions))
    return trace, computed
