"""Following slots through an edit.

Source: a slot's identity (`Canvas.uid`) survives insertion and deletion; its place does not.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Bools, Canvas, Ints


def places(before: Canvas, after: Canvas) -> Ints:
    """For each slot of `after`, its place in `before`, or -1 for a new one."""
    if len(before) == len(after) and np.array_equal(before.uid, after.uid):
        return np.arange(len(after))
    order = np.argsort(before.uid, kind="stable")
    at = np.minimum(np.searchsorted(before.uid, after.uid, sorter=order), len(before) - 1)
    found: Ints = np.where(before.uid[order[at]] == after.uid, order[at], -1)
    return found


def edited(before: Canvas, after: Canvas) -> Bools:
    """For each slot of `after`, whether it is new or holds another token than in `before`."""
    at = places(before, after)
    changed: Bools = (
        (at < 0) | (before.tokens[at] != after.tokens) | (before.open[at] != after.open)
    )
    return changed
