"""Compact traces of answers, and the canvases replayed from them.

A trace has the changes of each forward: `steps` of `[commits, remasked, replaced, inserted, deleted,
appended]`, trailing empty lists omitted. A commit is `[position, token, confidence]` with the confidence in
thousandths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from unmask.canvas import Canvas, Edit, new_canvas
from unmask.edit_rules import apply

if TYPE_CHECKING:
    from unmask.engine.outputs import Output
    from unmask.engine.request import Request

SCALE = 1000


class AnswerTrace(TypedDict):
    """The trace of an answer, ready for JSON; `num_positions`: length of the first canvas's answer."""

    prompt_ids: list[int]
    num_positions: int
    steps: list[list[list[int] | list[list[int]]]]


def compact(request: Request, output: Output) -> AnswerTrace:
    """Return the trace of a request's output."""
    assert output.trace is not None, "decoded without a trace"
    start = request.decoder.first_canvas(request.canvas, request.facts)
    steps = []
    for step in output.trace:
        parts: list[list[int] | list[list[int]]] = [
            [[position, token, round(SCALE * c)] for position, token, c in step.committed],
            list(step.remasked),
            [[position, token] for position, token, _ in step.replaced],
            [list(pair) for pair in step.inserted],
            list(step.deleted),
            list(step.appended),
        ]
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        steps.append(parts)
    return {
        "prompt_ids": start.tokens[: start.prompt_length].tolist(),
        "num_positions": len(start) - start.prompt_length,
        "steps": steps,
    }


def opening(trace: AnswerTrace, mask_id: int) -> Canvas:
    """Return the canvas before the first forward."""
    prompt, count = trace["prompt_ids"], trace["num_positions"]
    blanks = [False] * len(prompt) + [True] * count
    return new_canvas([*prompt, *[mask_id] * count], blanks, len(prompt), mask_id)


def edits_of(trace: AnswerTrace) -> Iterator[Edit]:
    """Yield the edit of every forward."""
    for parts in trace["steps"]:
        commits, remasked, replaced, inserted, deleted, appended = (
            np.array(part, dtype=np.int64) for part in [*parts, [], [], [], [], []][:6]
        )
        commits, replaced = commits.reshape(-1, 3), replaced.reshape(-1, 2)
        yield Edit(
            commit=commits[:, 0],
            tokens=commits[:, 1],
            confidence=commits[:, 2] / SCALE,
            remask=remasked,
            replace=replaced[:, 0],
            replace_tokens=replaced[:, 1],
            insert=tuple((position, size) for position, size in inserted.reshape(-1, 2).tolist()),
            delete=deleted,
            append=appended,
        )


def replay(trace: AnswerTrace, mask_id: int) -> Iterator[Canvas]:
    """Yield the canvas before every forward, and the final canvas."""
    canvas = opening(trace, mask_id)
    yield canvas
    for number, edit in enumerate(edits_of(trace)):
        canvas = apply(canvas, edit, number)
        yield canvas
