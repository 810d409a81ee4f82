"""The one decoding loop. Library, command line, evaluation and server all drive it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unmask.caches import Seen
from unmask.canvas import Canvas, Edit, Reading
from unmask.engine.faults import Fence
from unmask.engine.request import Sequence
from unmask.engine.runner import Runner, Turn


@dataclass(frozen=True, slots=True)
class Event:
    """One sequence after one forward: the canvas it had, the edit, the sequence as it is now.

    `error`: what its own decoder or cache raised; the sequence has left, unfinished, and the edit is empty.
    """

    before: Canvas
    edit: Edit
    sequence: Sequence
    error: BaseException | None = None


class Batch:
    """Sequences that decode together, whatever their decoders, caches, lengths and steps.

    It is formed anew before every forward: sequences come and go between two steps, and no row knows of
    the others.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.active: list[Sequence] = []

    def has_room(self, sequence: Sequence) -> bool:
        """Whether it can be admitted now."""
        return self.runner.has_room(sequence)

    def admit(self, sequence: Sequence) -> None:
        """Let a sequence take part from the next forward on."""
        self.runner.admit(sequence)
        self.active.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave, finished or not, and free what it held."""
        self.active = [other for other in self.active if other is not sequence]
        self.runner.release(sequence)

    def step(self) -> list[Event]:
        """One forward for every sequence; who finishes or fails leaves at once."""
        turns, events = list[Turn](), list[Event]()
        for sequence in self.active:
            with Fence() as fence:
                turns.append(self.runner.turn(sequence))
            if fence.error is not None:
                events.append(Event(sequence.canvas, Edit(), sequence, fence.error))
        for event in events:
            self.remove(event.sequence)
        if turns:
            for turn, seen in zip(turns, self.runner.forward(turns), strict=True):
                event = self._advance(turn, seen)
                if event.error is not None or event.sequence.finish_reason is not None:
                    self.remove(event.sequence)
                events.append(event)
        return events

    def _advance(self, turn: Turn, seen: Seen) -> Event:
        sequence, before, edit = turn.sequence, turn.sequence.canvas, Edit()
        with Fence() as fence:
            edit = decide(sequence, seen.reading)
            queries = turn.num_queries(self.runner.model.spec.num_layers)
            queries *= self.runner.rows_of(sequence)
            sequence.count(turn.plan.queries, queries)
            sequence.advance(edit, queries, seen)
            self.runner.follow(sequence, before)
            sequence.cache_bytes = max(sequence.cache_bytes, self.runner.cache_bytes(sequence))
        return Event(before, edit, sequence, fence.error)


def decode(waiting: Iterable[Sequence], runner: Runner) -> Iterator[Event]:
    """Decode sequences to their ends, as many at a time as the runner holds.

    A finished one leaves at once and the next is admitted before the following forward. Ends: every
    forward commits at least one slot of every sequence or is followed by one that does, and past
    `max_forwards` each commits all it read. What one sequence raises is raised here.
    """
    queue, batch = deque(waiting), Batch(runner)
    while queue or batch.active:
        while queue and batch.has_room(queue[0]):
            batch.admit(queue.popleft())
        for event in batch.step():
            if event.error is not None:
                raise event.error
            yield event


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
