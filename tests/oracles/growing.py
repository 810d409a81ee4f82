"""LLaDA's block diffusion on a growing canvas, written naively in float64. A block of one is AR.

Source: arXiv:2502.09992, appendix on flexible sampling: append B masks, run the reverse process in them,
append the next B.
"""

from __future__ import annotations

from .network import LogitsFn, read, surest_first


def quota(num_masks: int, steps: int) -> list[int]:
    """`num_masks` over `steps` as evenly as possible, the larger counts first."""
    return [num_masks // steps + (1 if t < num_masks % steps else 0) for t in range(steps)]


def decode(
    logits_fn: LogitsFn,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    mask_id: int,
    forbidden: set[int],
    *,
    steps: int | None = None,
    end_ids: frozenset[int] = frozenset(),
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas, which never holds more than the running block's masks.

    `steps` forwards a block, or one token a forward. The last block is cut at `gen_length`. No block is
    appended after one in which a token of `end_ids` was decided. An entry: `committed`, `length` of the
    canvas that the forward read.
    """
    ids = list(prompt)
    trace: list[dict] = []
    while len(ids) < len(prompt) + gen_length:
        start = len(ids)
        block_size = min(block_length, len(prompt) + gen_length - start)
        ids += [mask_id] * block_size
        undecided = set(range(start, len(ids)))
        for count in quota(block_size, steps or block_size):
            if not undecided:
                break
            rows = logits_fn(ids)
            both = {p: read(rows[p], forbidden) for p in undecided}
            kept = surest_first({p: both[p][1] for p in undecided})[:count]
            for p in kept:
                ids[p] = both[p][0]
                undecided.remove(p)
            trace.append({"committed": [(p, ids[p]) for p in sorted(kept)], "length": len(ids)})
        if end_ids & set(ids[start:]):
            break
    return trace, ids
