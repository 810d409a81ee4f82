"""The one decoding loop. Library, command line and evaluation all drive it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unmask.canvas import Canvas, Edit, Reading
from unmask.engine.request import Sequence
from unmask.engine.runner import Runner


@dataclass(frozen=True, slots=True)
class Event:
    """One sequence after one forward: the canvas it had, the edit, the sequence as it is now."""

    before: Canvas
    edit: Edit
    sequence: Sequence


def decode(waiting: Iterable[Sequence], runner: Runner) -> Iterator[Event]:
    """Decode sequences to their ends, as many at a time as the runner holds.

    A finished one leaves at once and the next is admitted before the following forward. No row knows
    of the others. Ends: every forward commits at least one slot of every sequence or is followed by one
    that does, and past `max_forwards` each commits all it read.
    """
    queue, active = deque(waiting), list[Sequence]()
    while queue or active:
        while queue and runner.has_room(queue[0]):
            active.append(queue.popleft())
            runner.admit(active[-1])
        turns = [runner.turn(sequence) for sequence in active]
        for turn, seen in zip(turns, runner.forward(turns), strict=True):
            sequence, before = turn.sequence, turn.sequence.canvas
            edit = decide(sequence, seen.reading)
            queries = turn.num_queries(runner.model.spec.num_layers) * runner.rows_of(sequence)
            sequence.advance(edit, queries, seen)
            runner.follow(sequence, before)
            sequence.cache_bytes = max(sequence.cache_bytes, runner.cache_bytes(sequence))
            if sequence.finish_reason is not None:
                runner.release(sequence)
            yield Event(before, edit, sequence)
        active = [sequence for sequence in active if sequence.finish_reason is None]


def decide(sequence: Sequence, reading: Reading) -> Edit:
    """The decoder's edit, with the progress guard: no step without a change, no endless revision."""
    request, canvas = sequence.request, sequence.canvas
    assert len(reading.slots), "the cache computed none of the asked rows"
    edit, sequence.decoder_state = request.decoder.step(canvas, sequence.decoder_state, reading)
    undecided = reading.undecided(canvas)
    if request.proposal.vocabulary == "adaptive":
        sequence.memory.watch(undecided.confidence, edit.tokens)
        edit = replace(edit, notes={"vocab_size": float(reading.top_v or 0), **edit.notes})
    if sequence.num_forwards >= request.max_forwards:
        sequence.num_forced += 1
        return undecided.commit(np.arange(len(undecided.slots)))
    if edit.is_empty and len(undecided.slots):
        sequence.num_forced += 1
        return undecided.commit(np.argmax(undecided.log_odds, keepdims=True))
    result: Edit = edit
    return result
