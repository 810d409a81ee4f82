"""SGLang's block loop and the step rules of its algorithms, written naively in float64.

Source: sglang 0.5.23, `srt/dllm`: `algorithm/base.py` (both loops), `low_confidence.py`,
`joint_threshold.py`, and `mixin/` for the blocks of a request. A request is cut into blocks of `size`
tokens from its first; each begins with what is left of the prompt, and the rest are masks. A block is
denoised until its rule says so, then it is part of the request's text; when the text is long enough, what
exceeds `max_new_tokens` is cut off. Nothing is known of how long the answer should be before that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .network import LogitsFn, read, surest_first


@dataclass
class Row:
    """A request: its text, the block it denoises, and what each of its forwards changed."""

    text: list[int]
    num_prompt: int
    block: list[int] = field(default_factory=list)
    is_given: list[bool] = field(default_factory=list)
    is_mask: list[bool] = field(default_factory=list)
    num_mask_free: int = 0
    num_steps: int = 0
    trace: list[dict] = field(default_factory=list)

    def begin(self, size: int, mask_id: int) -> None:
        """The next block: the text's tail, and masks."""
        start = len(self.text) // size * size
        tail = self.text[start:]
        self.block = tail + [mask_id] * (size - len(tail))
        self.is_given = [True] * len(tail) + [False] * (size - len(tail))
        self.is_mask = [not given for given in self.is_given]
        self.text = self.text[:start]
        self.num_mask_free = self.num_steps = 0

    def write(self, committed: dict[int, int], replaced: dict[int, int]) -> None:
        """Apply a step; both are {index in the block: token}."""
        for index, token in (committed | replaced).items():
            self.block[index], self.is_mask[index] = token, False
        start = len(self.text)
        self.trace.append(
            {
                "committed": [(start + i, token) for i, token in sorted(committed.items())],
                "replaced": [(start + i, token) for i, token in sorted(replaced.items())],
            }
        )


def above_or_surest(readings: dict[int, tuple[int, float]], threshold: float) -> dict[int, int]:
    """Of masked positions, those whose confidence exceeds the threshold; else the surest."""
    sure = [index for index, (_, confidence) in readings.items() if confidence > threshold]
    chosen = sure or surest_first({i: confidence for i, (_, confidence) in readings.items()})[:1]
    return {index: readings[index][0] for index in chosen}


def low_confidence(row: Row, rows, forbidden, *, threshold: float) -> bool:
    """A step; True if the block had no mask when the forward began."""
    masked = {i: read(rows[i], forbidden) for i, is_mask in enumerate(row.is_mask) if is_mask}
    if not masked:
        return True
    row.write(above_or_surest(masked, threshold), {})
    return False


def joint_threshold(
    row: Row,
    rows,
    forbidden,
    *,
    threshold: float,
    edit_threshold: float,
    max_post_edit_steps: int,
    penalty_lambda: float,
) -> bool:
    """A step; True if it changed nothing, or if the budget of forwards without masks is spent."""
    rows = rows.clone()
    if penalty_lambda > 0:
        for index in range(1, len(row.block)):
            rows[index, row.block[index - 1]] -= penalty_lambda
    readings = {i: read(rows[i], forbidden) for i in range(len(row.block))}
    committed: dict[int, int] = {}
    if any(row.is_mask):
        masked = {i: readings[i] for i in readings if row.is_mask[i]}
        committed = above_or_surest(masked, threshold)
    else:
        row.num_mask_free += 1
        if row.num_mask_free > max_post_edit_steps:
            return True
    replaced = {
        i: token
        for i, (token, confidence) in readings.items()
        if not row.is_mask[i]
        and not row.is_given[i]
        and confidence > edit_threshold
        and token != row.block[i]
    }
    row.write(committed, replaced)
    return not committed and not replaced


def decode(
    logits_fn: LogitsFn,
    prompts: list[list[int]],
    max_new_tokens: list[int],
    size: int,
    mask_id: int,
    forbidden: set[int],
    step,
    *,
    fdfo: bool = True,
    **keys,
) -> list[Row]:
    """Decode a batch; the rows have the whole texts (cut) and traces (of whole blocks).

    With `fdfo` a row that has finished its block goes on with the next one; without it, it waits for the
    slowest. `logits_fn` gets a text and returns its rows.
    """
    requests = [Row(list(prompt), len(prompt)) for prompt in prompts]
    ends = [len(prompt) + new for prompt, new in zip(prompts, max_new_tokens, strict=True)]
    running = list(zip(requests, ends, strict=True))
    for row, _ in running:
        row.begin(size, mask_id)
    done: dict[int, bool] = {}
    while running:
        for row, _ in running:
            if not done.get(id(row)):
                rows = logits_fn(row.text + row.block)[len(row.text) :]
                done[id(row)] = step(row, rows, forbidden, **keys)
        if not fdfo and not all(done[id(row)] for row, _ in running):
            continue
        for row, _ in running:
            if done[id(row)]:
                row.text += row.block
                row.begin(size, mask_id)
        finished = {id(row) for row, end in running if len(row.text) >= end and done[id(row)]}
        done = {}
        running = [(row, end) for row, end in running if id(row) not in finished]
    for row, end in zip(requests, ends, strict=True):
        row.text = row.text[:end]
    return requests
