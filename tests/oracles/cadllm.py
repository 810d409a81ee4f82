"""CadLLM's controller and its decoding of LLaDA with a dual cache, written naively in float64.

Source: arXiv:2512.07173, Equations 2 to 5 (variant "paper"), and the formulas of the published code, which
differ (variant "code"). The controller is a plain function of `history`, the mean score of the block's open
positions at each forward so far, and of `ring`, the last 50 tokens in the order they were committed.
"""

from __future__ import annotations

import torch

from .network import Network, read, surest_first

TAU_BASE, TAU_MIN = 0.85, 0.4
VOCAB_BASE, VOCAB_MIN, VOCAB_MAX = 100, 35, 1000


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def float32_mean(numbers: list[float]) -> float:
    """The published code averages in float32 and then truncates to int, so the rounding shows."""
    return float(torch.tensor(numbers, dtype=torch.float32).mean())


def block_plan(
    history: list[float],
    remaining: int,
    *,
    initial_steps: int,
    max_steps: int,
    initial_block_length: int,
    max_block: int,
    min_block: int,
    variant: str = "code",
) -> tuple[int, int]:
    """(B, T): the next block's length and its planned number of forwards."""
    if not history:
        return min(initial_block_length, remaining), initial_steps
    sure = float32_mean(history[-2:]) if variant == "code" else mean(history[-5:])
    block = min_block + int((max_block - min_block) * sure)
    block = min(max(block, min_block), max_block)
    block = min(block, remaining)
    steps = initial_steps + int((max_steps - initial_steps) * (1 - min(max(sure, 0.0), 1.0)))
    steps = max(initial_steps, min(steps, max_steps))
    if variant == "code":
        steps = max(1, int(steps * block / initial_block_length))
    return block, steps


def relaxed_threshold(part: float) -> float:
    """0.85 at the start, 0.4 at and after the end. `part` is t / T in the code, progress in the paper."""
    return max(TAU_MIN, TAU_BASE * (1 - part) + TAU_MIN * part)


def repetition(ring: list[int]) -> float:
    if len(ring) < 8:
        return 0.0
    if len(set(ring[-4:])) == 1:
        return 1.0
    longest = max((n for n in (2, 3, 4) if ring[-n:] == ring[-2 * n : -n]), default=0)
    return longest / 8


def vocabulary_size(history: list[float], ring: list[int], progress: float) -> int:
    """V: how many of a row's largest logits its score is normalized over."""
    if progress < 0.2:
        size = 0.8 * VOCAB_MAX
    elif progress < 0.7:
        size = 0.7 * VOCAB_BASE
    else:
        size = 0.9 * VOCAB_BASE
    if history:
        sure = mean(history[-5:])
        if sure < 0.3:
            size *= 1.5
        elif sure < 0.6:
            size *= 1.2
        elif sure > 0.8:
            size *= 0.8
        if len(history) >= 3 and history[-1] - history[-3] < -0.1:
            size *= 1.3
    again = repetition(ring)
    if again > 0.5:  # so the repeated patterns, worth at most 4 / 8, never count
        size *= 1 + 2 * again
    return int(min(max(size, VOCAB_MIN), VOCAB_MAX))


def score_of(row: torch.Tensor, token: int, size: int, confidence: str) -> float:
    """The proposal's probability among the `size` largest logits, or 1 / (1 + their entropy in nats).

    The paper has no entropy score; this one was found from the published code's decodes.
    """
    top = torch.topk(row, size).values
    if confidence == "softmax":
        if row[token] < top[-1]:
            return 0.0
        return float(torch.exp(row[token] - torch.logsumexp(top, dim=0)))
    p = torch.softmax(top, dim=0)
    return 1 / (1 - float(torch.special.xlogy(p, p).sum()))


def lead(row: torch.Tensor) -> float:
    """The probability of the likeliest token less that of the next, over the whole vocabulary."""
    first, second = torch.softmax(row, dim=0).topk(2).values.tolist()
    return first - second


def decode(
    network: Network,
    prompt: list[int],
    gen_length: int,
    mask_id: int,
    forbidden: set[int],
    *,
    confidence: str = "softmax",
    variant: str = "code",
    early_exit: bool = False,
    **knobs: int,
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas. `knobs` are those of `block_plan`.

    With `early_exit`, a forward t of a block that is later than a fifth of T commits the rest of the block,
    if it and the one before, both of this block and after its first, were clear: the lead of the likeliest
    token, averaged over all positions of the block, above 0.3, and the mean score of the open ones above
    0.6. The published code then repeats the forward, on the same canvas, and takes the best tokens; they
    are not added to the ring.

    An entry: `committed`, `vocab_size`, `threshold`, `block` = (start, end), `num_steps` = T and
    `computed`, the number of positions of the forward.
    """
    shift, length = network.spec.shift_logits, len(prompt) + gen_length
    ids = prompt + [mask_id] * gen_length
    undecided = [False] * len(prompt) + [True] * gen_length
    history: list[float] = []
    ring: list[int] = []
    trace: list[dict] = []
    network.forget()
    start = len(prompt)
    while start < length:
        block, steps = block_plan(history, length - start, variant=variant, **knobs)
        end, t, done = start + block, 0, start - len(prompt)
        clear: list[bool] = []
        while any(undecided[start:end]):
            eligible = [p for p in range(start, end) if undecided[p]]
            asked = range(start, end) if early_exit else eligible
            answers = {p: max(p - 1, 0) if shift else p for p in asked}
            positions = sorted({*range(start, end), *answers.values()})
            if t == 0:
                positions = list(range(length))
            seen = network.logits(ids, positions)

            progress = done / gen_length + t / steps * (block / gen_length)
            tau = relaxed_threshold(t / steps if variant == "code" else progress)
            size = min(vocabulary_size(history, ring, progress), network.spec.vocab_size)

            tokens, scores = {}, {}
            for p in eligible:
                row = seen[answers[p]]
                tokens[p], _ = read(row, forbidden)
                scores[p] = score_of(row, tokens[p], size, confidence)
            order = surest_first(scores)
            kept = order[:1] + [p for p in order[1:] if scores[p] >= tau]
            if variant == "paper" and t == steps - 1:
                kept = order  # S_t bounds the forwards: the last one commits what is left
            history.append(mean(list(scores.values())))
            if t >= 1:
                leads = [lead(seen[answers[p]]) for p in answers]
                clear.append(mean(leads) > 0.3 and history[-1] > 0.6)
            exits = early_exit and len(clear) >= 2 and all(clear[-2:]) and t > 0.2 * steps
            if exits:
                kept = order
            for p in sorted(kept):
                ids[p], undecided[p] = tokens[p], False
                ring = ring if exits else [*ring, tokens[p]][-50:]
            trace.append(
                {
                    "committed": [(p, tokens[p]) for p in sorted(kept)],
                    "vocab_size": size,
                    "threshold": tau,
                    "block": (start, end),
                    "num_steps": steps,
                    "computed": len(positions),
                }
            )
            t += 1
        start = end
    return trace, ids
