"""DAEDAL's two phases, written naively in float64 for one sequence, without a cache.

Source: arXiv:2508.00819, Sections 3.1 and 3.2, as its published code does it: the end-of-text mass is
divided by `num_check_last_eot` however few positions were found, positions that do not propose the end are
skipped, and (`compat`) the first phase ends by appending half as many decided end tokens.
"""

from __future__ import annotations

from .network import LogitsFn, read, surest_first


def end_mass(proposed, probability_of_end, eos_id: int, num_check: int) -> float:
    """Mean probability of the end over the last positions that propose it; both lists are generated."""
    found: list[float] = []
    for token, probability in zip(reversed(proposed), reversed(probability_of_end), strict=True):
        if len(found) == num_check:
            break
        if token == eos_id:
            found.append(probability)
    return sum(found) / num_check


def keep_sure(scores: dict[int, float], threshold: float) -> list[int]:
    """All above the threshold, else the surest; none of none."""
    return sorted(p for p in scores if scores[p] > threshold) or surest_first(scores)[:1]


def make_room(
    ids: list[int], undecided: list[bool], at: int, count: int, mask_id: int, max_length: int
) -> int:
    """Put `count` open positions before `at`, in place; how many positions then fell off the end."""
    ids[at:at] = [mask_id] * count
    undecided[at:at] = [True] * count
    excess = max(0, len(ids) - max_length)
    del ids[max_length:], undecided[max_length:]
    return excess


def decode(  # noqa: PLR0913 - the paper's knobs
    logits_fn: LogitsFn,
    prompt: list[int],
    mask_id: int,
    eos_id: int,
    forbidden: set[int],
    *,
    initial_gen_length: int = 64,
    max_gen_length: int = 2048,
    block_length: int = 32,
    threshold: float = 0.9,
    initial_eot_expand_thres: float = 0.5,
    decode_eot_expand_thres: float = 0.9,
    low_conf_expand_thres: float = 0.1,
    num_check_last_eot: int = 32,
    expansion_factor: int = 8,
    compat: bool = True,
) -> tuple[list[dict], list[int]]:
    """The trace and the canvas.

    An entry: `phase` (1 or 2); `committed`, at the positions that the forward saw; then `inserted`
    [(position of the first new position, how many)]; then `filled`, new positions that hold a decided token
    at once; then `truncated`, how many positions the tail lost; `end_mass` of the forward.
    """
    first = len(prompt)
    ids = prompt + [mask_id] * initial_gen_length
    undecided = [False] * first + [True] * initial_gen_length
    trace: list[dict] = []

    def look() -> tuple[dict[int, int], dict[int, float], float]:
        rows = logits_fn(ids)
        positions = range(first, len(ids))
        both = {p: read(rows[p], forbidden) for p in positions}
        tokens = {p: both[p][0] for p in positions}
        ends = [float(rows[p].softmax(dim=0)[eos_id]) for p in positions]
        mass = end_mass(list(tokens.values()), ends, eos_id, num_check_last_eot)
        return tokens, {p: both[p][1] for p in positions}, mass

    def note(phase: int, mass: float) -> dict:
        entry = {"phase": phase, "end_mass": mass, "committed": [], "inserted": [], "filled": []}
        trace.append(entry | {"truncated": 0})
        return trace[-1]

    def append(count: int, token: int, open_: bool) -> list[tuple[int, int]]:
        count = min(count, first + max_gen_length - len(ids))
        new = [(len(ids) + i, token) for i in range(count)]
        ids.extend([token] * count)
        undecided.extend([open_] * count)
        return new

    while True:
        _, _, mass = look()
        entry = note(1, mass)
        at = len(ids)
        if mass >= initial_eot_expand_thres or at - first >= max_gen_length:
            break
        entry["inserted"] = [(at, len(append(expansion_factor, mask_id, True)))]
    if compat:
        entry["filled"] = append(num_check_last_eot // 2, eos_id, False)
        if entry["filled"]:
            entry["inserted"] = [(at, len(entry["filled"]))]

    cur = first
    while cur < len(ids):
        tokens, scores, mass = look()
        entry = note(2, mass)
        open_positions = [p for p in range(cur, min(cur + block_length, len(ids))) if undecided[p]]
        kept = keep_sure({p: scores[p] for p in open_positions}, threshold)
        entry["committed"] = [(p, tokens[p]) for p in kept]

        unsure = [p for p in open_positions if p not in kept and scores[p] < low_conf_expand_thres]
        grows = mass < decode_eot_expand_thres and len(ids) - first < max_gen_length
        for p, token in entry["committed"]:
            ids[p], undecided[p] = token, False
        if unsure and grows:
            at = min(unsure, key=lambda p: (scores[p], p)) + 1
            new = (
                expansion_factor - 1
            )  # the position itself stays open: one becomes `expansion_factor`
            entry["inserted"] = [(at, new)]
            entry["truncated"] = make_room(ids, undecided, at, new, mask_id, first + max_gen_length)
        while cur < len(ids) and not any(undecided[cur : cur + block_length]):
            cur += block_length
    return trace, ids
