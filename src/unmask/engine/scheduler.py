"""The one decoding loop. Library, command line, evaluation and server all drive it."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unmask.caches.base import Observation
from unmask.canvas import Canvas, Edit, Reading, edit_fault
from unmask.engine.model_runner import NOT_FINITE, ForwardInput, ModelRunner
from unmask.engine.sequence import SequenceState
from unmask.engine.threads import ErrorCapture
from unmask.errors import CacheError, DecoderError, ModelError


@dataclass(frozen=True, slots=True)
class Event:
    """One sequence after one forward: the canvas it had, the edit, the sequence as it is now.

    `error`: what its own decoder or cache raised; the sequence has left, unfinished, and the edit is empty.
    """

    before: Canvas
    edit: Edit
    sequence: SequenceState
    error: BaseException | None = None


class Scheduler:
    """Sequences that decode together, whatever their decoders, caches, lengths and steps.

    It is formed anew before every forward: sequences come and go between two steps, and no row knows of
    the others. A forward computes about `max_tokens` positions (None: no limit): who does not fit
    is held, and goes first the next time; a sequence that exceeds it alone goes alone. When pages run
    out, the youngest sequences that hold any leave (`preempted`) and may be admitted again: their keys are
    computed anew from the canvas, which gives the same ones, so only caches with pages are ever preempted.
    """

    def __init__(self, runner: ModelRunner, max_tokens: int | None = None) -> None:
        self.runner, self.max_tokens = runner, max_tokens
        self.active: list[SequenceState] = []
        """By age: `SequenceState.index`."""
        self.preempted: list[SequenceState] = []
        self.num_computed = 0
        """Positions that the last step computed."""
        self.num_answer = 0
        """Those of them that are not of a prompt."""
        self._inputs: dict[int, ForwardInput] = {}
        self._held: dict[int, int] = {}

    def has_room(self, sequence: SequenceState) -> bool:
        """Whether it can be admitted now."""
        return self.runner.has_room(sequence)

    def admit(self, sequence: SequenceState) -> None:
        """Let a sequence take part from the next forward on."""
        self.runner.admit(sequence)
        insort(self.active, sequence, key=lambda each: each.index)

    def remove(self, sequence: SequenceState) -> None:
        """Let a sequence leave, finished or not, and free what it held."""
        self.active = [other for other in self.active if other is not sequence]
        self.runner.release(sequence)
        self._inputs.pop(id(sequence), None)
        self._held.pop(id(sequence), None)

    def step(self) -> list[Event]:
        """One forward; who finishes or fails leaves at once."""
        events, self.num_computed, self.num_answer = self._plan(), 0, 0
        inputs = self._choose()
        if not inputs:
            return events
        for item, observation in zip(inputs, self.runner.forward(inputs), strict=True):
            event = self._advance(item, observation)
            if event is None:
                continue
            if event.error is not None or event.sequence.finish_reason is not None:
                self.remove(event.sequence)
            events.append(event)
        return events

    def _plan(self) -> list[Event]:
        """Give every sequence its input, and the pages for it; who fails leaves."""
        failed = []
        for sequence in list(self.active):
            if id(sequence) not in self._inputs:
                with ErrorCapture() as capture:
                    self._inputs[id(sequence)] = self.runner.prepare(sequence, self.max_tokens)
                if capture.error is not None:
                    self.remove(sequence)
                    failed.append(Event(sequence.canvas, Edit(), sequence, capture.error))
        for sequence in list(self.active):  # the oldest first: it always finds room
            while id(sequence) in self._inputs and not self.runner.reserve_pages(
                self._inputs[id(sequence)]
            ):
                self._preempt(next(s for s in reversed(self.active) if self.runner.is_paged(s)))
        return failed

    def _preempt(self, sequence: SequenceState) -> None:
        self.remove(sequence)
        sequence.num_preempted += 1
        self.preempted.append(sequence)

    def _choose(self) -> list[ForwardInput]:
        """The inputs of this forward: those held before, then by age, as long as they fit."""
        chosen, room = list[ForwardInput](), self.max_tokens
        for sequence in sorted(self.active, key=lambda each: -self._held.get(id(each), 0)):
            item = self._inputs[id(sequence)]
            cost = self._cost(item)
            if room is not None:
                if chosen and cost > room:
                    self._held[id(sequence)] = self._held.get(id(sequence), 0) + 1
                    continue
                room -= cost
            chosen.append(item)
        for item in chosen:
            del self._inputs[id(item.sequence)]
            self._held.pop(id(item.sequence), None)
        return chosen

    def _cost(self, item: ForwardInput) -> int:
        """Positions that an input computes."""
        num_layers = self.runner.model.spec.num_layers
        return item.num_queries(num_layers) * self.runner.rows_of(item.sequence)

    def _advance(self, item: ForwardInput, observation: Observation) -> Event | None:
        sequence, before, edit = item.sequence, item.sequence.canvas, Edit()
        cost = self._cost(item)
        self.num_computed += cost
        queries = item.plan.queries
        if len(queries):
            share = (queries >= before.prompt_length).sum() / len(queries)
            self.num_answer += round(cost * float(share))
        sequence.count(item.plan.queries, cost)
        if not item.runs_decoder:
            return None
        with ErrorCapture() as capture:
            edit = decide(sequence, observation.reading)
            sequence.advance(edit, cost, observation)
            self.runner.follow(sequence, before)
            sequence.cache_bytes = max(sequence.cache_bytes, self.runner.cache_bytes(sequence))
        return Event(before, edit, sequence, capture.error)


def decode(waiting: Iterable[SequenceState], runner: ModelRunner) -> Iterator[Event]:
    """Decode sequences to their ends, as many at a time as the runner holds.

    A finished one leaves at once and the next is admitted before the following forward. Ends: every
    forward commits at least one position of every sequence or is followed by one that does, and past
    `max_forwards` each commits all it read. What one sequence raises is raised here.
    """
    queue, batch = deque(waiting), Scheduler(runner)
    while queue or batch.active:
        while queue and batch.has_room(queue[0]):
            batch.admit(queue.popleft())
        for event in batch.step():
            if event.error is not None:
                raise event.error
            yield event


def decide(sequence: SequenceState, reading: Reading) -> Edit:
    """The decoder's edit, with the progress guard: no step without a change, no endless revision."""
    request, canvas = sequence.request, sequence.canvas
    if not len(reading.positions):
        raise CacheError(
            "CachePlan.queries has none of the rows that answer the asked positions",
            request.cache.name,
            sequence.num_forwards,
        )
    if np.isnan(reading.log_odds).any():
        raise ModelError(NOT_FINITE)
    edit, state = request.decoder.step(canvas, sequence.decoder_state, reading)
    rule = edit_fault(canvas, edit, request.facts.vocab_size)
    if rule is not None:
        raise DecoderError(rule, request.decoder.name, sequence.num_forwards)
    sequence.decoder_state = state
    undecided = reading.undecided(canvas)
    if request.sampling_params.vocabulary == "adaptive":
        sequence.sampler_state.record(undecided.confidence, edit.tokens)
        edit = replace(edit, notes={"vocab_size": float(reading.top_v or 0), **edit.notes})
    if sequence.num_forwards >= request.max_forwards:
        sequence.num_forced += 1
        return undecided.commit(np.arange(len(undecided.positions)))
    if edit.is_empty and len(undecided.positions):
        sequence.num_forced += 1
        return undecided.commit(np.argmax(undecided.log_odds, keepdims=True))
    return edit
