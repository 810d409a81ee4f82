"""LLaDA2.1's joint decoding, mask to token and token to token, written naively in float64.

Source: LLaDA2.1's published sampler and SGLang's JointThreshold. One sequence on a fixed canvas,
blocks left to right.
"""

from __future__ import annotations

from .network import LogitsFn, read, surest_first


def decode(  # noqa: PLR0913 - the method's knobs
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    mask_id: int,
    forbidden: set[int],
    *,
    threshold: float = 0.5,
    edit_threshold: float = 0.0,
    max_post_edit_steps: int = 16,
    penalty_lambda: float = 0.0,
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas. An entry: `committed` and `replaced`, both [(position, new token)].

    `penalty_lambda` is taken from the logit of the token at the position's left, the mask included, within
    the block: its first position pays nothing.
    """
    length = len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: list[dict] = []
    for start in range(len(prompt), length, block_length):
        block = range(start, min(start + block_length, length))
        num_mask_free = 0
        while True:
            positions = [p for p in block if undecided[p]]
            if not positions:
                if num_mask_free == max_post_edit_steps:
                    break
                num_mask_free += 1
            rows = logits_fn(ids).clone()
            for p in block[1:]:
                rows[p, ids[p - 1]] -= penalty_lambda
            both = {p: read(rows[p], forbidden) for p in block}
            order = surest_first({p: both[p][1] for p in positions})
            kept = order[:1] + [p for p in order[1:] if both[p][1] > threshold]
            edited = [
                p
                for p in block
                if not undecided[p] and both[p][0] != ids[p] and both[p][1] > edit_threshold
            ]
            for p in kept + edited:
                ids[p], undecided[p] = both[p][0], False
            trace.append(
                {
                    "committed": [(p, both[p][0]) for p in sorted(kept)],
                    "replaced": [(p, both[p][0]) for p in edited],
                }
            )
            if not kept and not edited:
                break
    return trace, ids
