"""An answer's decode in few bytes, and its canvases back from it.

A trace is what each forward changed: `steps` of `[commits, remasked, replaced, inserted, deleted,
appended]`, where a commit is `[position, token, confidence]`, with the confidence in thousandths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.canvas import Canvas, Edit, apply, new_canvas

if TYPE_CHECKING:
    from unmask.engine.outputs import Output
    from unmask.engine.request import Request

SCALE = 1000


def compact(request: Request, output: Output) -> dict[str, Any]:
    """The trace of a request's output, ready for JSON."""
    assert output.trace is not None, "decoded without a trace"
    start = request.decoder.first_canvas(request.canvas, request.facts)
    steps = []
    for step in output.trace:
        commits = [[position, token, round(SCALE * c)] for position, token, c in step.committed]
        replaced = [[position, token] for position, token, _ in step.replaced]
        inserted = [list(pair) for pair in step.inserted]
        parts: list[Any] = [commits, list(step.remasked), replaced, inserted]
        parts += [list(step.deleted), list(step.appended)]
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        steps.append(parts)
    return {
        "prompt_ids": start.tokens[: start.prompt_length].tolist(),
        "num_positions": len(start) - start.prompt_length,
        "steps": steps,
    }


def replay(trace: dict[str, Any], mask_id: int) -> Iterator[Canvas]:
    """The canvas before every forward, and at last the one that it left."""
    prompt, count = trace["prompt_ids"], trace["num_positions"]
    blanks = [False] * len(prompt) + [True] * count
    canvas = new_canvas([*prompt, *[mask_id] * count], blanks, len(prompt), mask_id)
    for number, parts in enumerate(trace["steps"]):
        yield canvas
        full: list[Any] = [*parts, [], [], [], [], []]
        commits, remasked, replaced, inserted, deleted, appended = full[:6]
        edit = Edit(
            commit=_ints([item[0] for item in commits]),
            tokens=_ints([item[1] for item in commits]),
            confidence=np.array([item[2] / SCALE for item in commits], dtype=np.float64),
            remask=_ints(remasked),
            replace=_ints([item[0] for item in replaced]),
            replace_tokens=_ints([item[1] for item in replaced]),
            insert=tuple((position, size) for position, size in inserted),
            delete=_ints(deleted),
            append=_ints(appended),
        )
        canvas = apply(canvas, edit, number)
    yield canvas


def _ints(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)
