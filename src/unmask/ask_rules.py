"""Rules for the answers of a decoder and a cache policy, which may be a user's: an ask, and pairs."""

from __future__ import annotations

import numpy as np

from unmask.canvas import NO_POSITIONS, Ask, Bias, Canvas, Credit, Floats
from unmask.edit_rules import positions_fault


def pair_fault(method: str, kind: str, answer: object) -> str | None:
    """Return what is wrong with the answer of a plug-in's method: a pair of a `kind` and the state."""
    if isinstance(answer, tuple) and len(answer) == 2:
        return None
    return f"{method} returned {type(answer).__name__}; it returns {kind} and the state"


def ask_fault(canvas: Canvas, ask: object, vocab_size: int) -> str | None:
    """Return a description of the first rule that an ask for this canvas breaks, or None."""
    if not isinstance(ask, Ask):
        return f"ask returned {type(ask).__name__}; it returns an Ask and the state"
    size, window = len(canvas), ask.window
    fault = positions_fault("Ask.rows", ask.rows, size)
    for name, values in (
        ("Ask.needed", ask.needed),
        ("Ask.optional", ask.optional),
        ("Ask.shadows", ask.shadows),
    ):
        if fault is None and values is not NO_POSITIONS:
            fault = positions_fault(name, values, size)
    if fault is not None:
        return fault
    if not len(ask.rows):
        return "Ask.rows is empty; ask for at least one position"
    if len(ask.needed) and not np.isin(ask.needed, ask.rows).all():
        return f"Ask.needed={ask.needed.tolist()[:20]} must be among Ask.rows"
    if len(window) != 2 or not 0 <= window[0] <= window[1] <= size:
        return f"Ask.window={window} must be a range [start, end) within the {size} positions"
    if ask.top_v is not None and ask.top_v < 1:
        return f"Ask.top_v={ask.top_v} must be at least 1"
    if ask.allowed is not None:
        return "Ask.allowed is set by the engine, from the request's constraint; leave it None"
    return _added_fault(ask, size, vocab_size)


def _added_fault(ask: Ask, size: int, vocab_size: int) -> str | None:
    """Return a description of the first rule that the bias or credit of an ask breaks, or None."""
    if ask.bias is None and ask.credit is None:
        return None
    additions: list[tuple[str, Bias | Credit, Floats]] = []
    if ask.bias is not None:
        additions.append(("Ask.bias", ask.bias, ask.bias.values))
    if ask.credit is not None:
        additions.append(("Ask.credit", ask.credit, ask.credit.amounts))
    for name, cells, numbers in additions:
        if not len(cells.positions) == len(cells.tokens) == len(numbers):
            return f"{name} must have one position, token and number for each entry"
        inside = (cells.positions >= 0) & (cells.positions < size)
        inside &= (cells.tokens >= 0) & (cells.tokens < vocab_size) & np.isfinite(numbers)
        if not inside.all():
            return f"{name} has a position or token out of range, or a number that is not finite"
    return None
