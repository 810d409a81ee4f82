"""WINO's draft and verification with a shadow block, written naively in float64 for one sequence.

Source: arXiv:2507.18578, Algorithm 1, with the published code's limits: at most 0.7 of the block's open
positions a forward, but between 5 and 20; fewer remasked than the forward before accepted.
"""

from __future__ import annotations

import torch

from .network import Network, read, surest_first


def shadow_mask(length: int, hidden: list[int], see_each_other: bool) -> torch.Tensor:
    """(T, T), T = length + shadows: which column each row reads.

    Canvas rows read the canvas; the shadow k reads it without position `hidden[k]`, and the other shadows.
    """
    count = len(hidden)
    canvas = [[True] * length + [False] * count for _ in range(length)]
    shadow = [
        [column != hidden[k] for column in range(length)]
        + [see_each_other or other == k for other in range(count)]
        for k in range(count)
    ]
    return torch.tensor(canvas + shadow)


def decode(  # noqa: PLR0913 - the paper's knobs
    network: Network,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    mask_id: int,
    forbidden: set[int],
    *,
    wide_in_thres: float = 0.6,
    narrow_out_thres: float = 0.9,
    twins_see_each_other: bool = True,
    share: float = 0.7,
    least: int = 5,
    most: int = 20,
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas. An entry: `committed`, `remasked` [positions], `computed` rows.

    With `spec.shift_logits`, row i - 1 answers position i: position j's shadow is a mask at place j - 1
    that reads all but position j.
    """
    shift, length = network.spec.shift_logits, len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    trace: list[dict] = []
    for start in range(len(prompt), length, block_length):
        block = list(range(start, min(start + block_length, length)))
        place = {p: max(p - 1, 0) if shift else p for p in range(length)}
        shadows = [place[p] for p in block]
        visible = shadow_mask(length, block, twins_see_each_other)
        last_accept = 30
        while any(undecided[p] for p in block):
            drafted = [p for p in block if undecided[p]]
            decided = [p for p in block if not undecided[p]]
            tokens = ids + [mask_id] * len(block)
            rows = network.forward(tokens, list(range(length)) + shadows, visible)

            both = {p: read(rows[place[p]], forbidden) for p in drafted}
            order = surest_first({p: both[p][1] for p in drafted})
            accepted = [p for p in order if both[p][1] > wide_in_thres]
            cap = min(max(int(share * len(drafted)), least), most)
            accepted = accepted[:cap] or order[:1]

            doubted: list[int] = []
            if len(accepted) > 1:
                sure = {
                    p: float(rows[length + block.index(p)].softmax(dim=0)[ids[p]]) for p in decided
                }
                doubted = sorted(
                    (p for p in decided if sure[p] < narrow_out_thres), key=lambda p: (sure[p], p)
                )
                if len(doubted) >= last_accept:
                    doubted = doubted[: last_accept - 1]
            for p in accepted:
                ids[p], undecided[p] = both[p][0], False
            for p in doubted:
                ids[p], undecided[p] = mask_id, True
            last_accept = len(accepted)
            trace.append(
                {
                    "committed": [(p, both[p][0]) for p in sorted(accepted)],
                    "remasked": sorted(doubted),
                    "computed": len(tokens),
                }
            )
    return trace, ids
