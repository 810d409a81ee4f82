"""Shares of small requests among large ones.

A request is small beside one that has at least `SMALLER` times its work left. Small requests do not wait
for a row of the batch: they are admitted to extra rows, and are part of every forward, in which large ones
take turns for the remaining rows. Smaller sequences keep no other out of more than `MAX_DEFERRED` forwards
in a row, so that a steady stream of small requests slows large ones down but never stops them.
"""

from __future__ import annotations

import numpy as np

from unmask.canvas import Canvas
from unmask.engine.sequence import SequenceState

SMALLER = 8
MAX_DEFERRED = 4
NUM_LEVELS = 3
"""Classes of extra rows: the last ones are for requests that are smaller by higher powers of `SMALLER`."""


def work_left(sequence: SequenceState) -> int:
    """Return the positions that are still to compute at most: undecided ones, times those of a forward.

    Positions with a draft's token count as undecided.
    """
    canvas = sequence.canvas
    return _num_undecided(canvas) * len(canvas)


def work_at_most(sequence: SequenceState) -> int:
    """Return `work_left` of a sequence before its first forward, for the longest canvas it may have."""
    canvas, longest = sequence.canvas, sequence.request.max_positions
    return (longest - len(canvas) + _num_undecided(canvas)) * longest


def _num_undecided(canvas: Canvas) -> int:
    """Return the number of positions that no forward has committed: open ones and those of a draft."""
    return int(np.count_nonzero((canvas.origin == -1) & ~canvas.fixed))


def num_extra_rows(max_rows: int) -> int:
    """Return the number of rows for small requests beyond the `max_rows` of a forward."""
    return max(1, min(2, max_rows // 2), max_rows // 4)


def most_work(largest: int, num_taken: int, num_extra: int) -> int:
    """Return the most work of a request that may enter an extra row beside the `largest` one.

    The more extra rows are taken, the smaller it must be, so that one that is smaller still finds a row or
    waits for a small one only.
    """
    level = 1 + NUM_LEVELS * num_taken // num_extra
    return largest // int(SMALLER**level)
