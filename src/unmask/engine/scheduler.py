"""The decoding loop of the library, the command line, the evaluation and the server."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from unmask.ask_rules import pair_fault
from unmask.caches.base import Observation
from unmask.canvas import NO_POSITIONS, Canvas, Edit, Reading
from unmask.edit_rules import edit_faults
from unmask.engine.constrained import restrict
from unmask.engine.drafts import within_edits
from unmask.engine.lookahead import (
    count_unused,
    inputs_ahead,
    is_same_forward,
    may_read_ahead,
)
from unmask.engine.model_runner import NOT_FINITE, ForwardInput, ModelRunner
from unmask.engine.sequence import SequenceState
from unmask.engine.shares import MAX_DEFERRED, SMALLER, work_left
from unmask.engine.threads import ErrorCapture
from unmask.errors import CacheError, DecoderError, ModelError


@dataclass(frozen=True, slots=True)
class Event:
    """The result of a forward for one sequence: the canvas before it, the edit, and the sequence.

    `error` is an exception of the sequence's own decoder or cache; the sequence has then left the batch,
    unfinished, and the edit is empty. `reading` is that of the forward, for a request of log-probabilities.
    With `is_last` the sequence is finished; events of the same forward before that one are not the last.
    """

    before: Canvas
    edit: Edit
    sequence: SequenceState
    error: BaseException | None = None
    reading: Reading | None = None
    is_last: bool = False


class Scheduler:
    """The batch of sequences that decode together, with any mix of decoders, caches, lengths and steps.

    Sequences enter and leave between two forwards, and their results do not depend on each other. A forward
    computes about `max_tokens` positions (None: no limit) of at most `runner.max_rows` rows; a sequence
    that does not fit is deferred and has priority in the next forward, after small ones (`engine.shares`).
    One that exceeds the limit alone runs alone. When pages run out, the youngest sequences with pages are
    moved to `preempted` and may be admitted again. Their keys are then recomputed from the canvas with
    equal results, so only sequences with pages are preempted.
    """

    def __init__(self, runner: ModelRunner, max_tokens: int | None = None) -> None:
        self.runner, self.max_tokens = runner, max_tokens
        self.active: list[SequenceState] = []
        """The admitted sequences, the oldest (by `SequenceState.index`) first."""
        self.preempted: list[SequenceState] = []
        self.num_computed = 0
        """Number of positions that the last step computed."""
        self.num_answer = 0
        """Number of those that are not part of a prompt."""
        self._inputs: dict[int, ForwardInput] = {}
        self._num_deferred: dict[int, int] = {}

    def has_room(self, sequence: SequenceState, num_extra: int = 0) -> bool:
        """Return whether a sequence can be admitted now, to the rows of a forward and `num_extra` more."""
        return self.runner.has_room(sequence, num_extra)

    def admit(self, sequence: SequenceState) -> None:
        """Add a sequence to the batch, from the next forward on."""
        self.runner.admit(sequence)
        insort(self.active, sequence, key=lambda each: each.index)

    def remove(self, sequence: SequenceState) -> None:
        """Remove a sequence from the batch, finished or not, and free its memory."""
        self.active = [other for other in self.active if other is not sequence]
        self.runner.release(sequence)
        self._inputs.pop(id(sequence), None)
        self._num_deferred.pop(id(sequence), None)

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Event]:
        """Run one forward; finished and failed sequences leave the batch immediately.

        `meanwhile` is called once, between the launch of the forward and the wait for its result, while an
        asynchronous device computes; in a step without a forward too, but not if the launch raises.
        """
        events, self.num_computed, self.num_answer = self._plan(), 0, 0
        inputs, room = self._choose()
        ahead, failed = self._read_ahead(inputs, room)
        events += failed
        inputs = [item for item in inputs if id(item.sequence) in ahead]
        extra = [guess for guesses in ahead.values() for guess in guesses]
        if not inputs:
            meanwhile()
            return events
        pending = self.runner.launch(inputs, extra)
        meanwhile()
        for item in inputs:
            self._count(item)
        observations = self.runner.collect(pending)
        seen = dict(zip(map(id, extra), observations[len(inputs) :], strict=True))
        observations = observations[: len(inputs)]
        answers = decide_all(inputs, observations)
        for item, observation, answer in zip(inputs, observations, answers, strict=True):
            event = self._advance(item, observation, answer)
            guesses = deque(ahead[id(item.sequence)])
            while event is not None:
                events.append(event)
                if event.error is not None or event.is_last:
                    self.remove(event.sequence)
                    break
                event = self._advance_ahead(event.sequence, guesses, seen) if guesses else None
            for guess in guesses:
                cost = self._cost(guess)
                self.num_computed += cost
                count_unused(item.sequence, guess, cost)
        return events

    def _read_ahead(
        self, inputs: list[ForwardInput], room: float
    ) -> tuple[dict[int, list[ForwardInput]], list[Event]]:
        """Return the inputs of predicted canvases by `id` of their sequence; sequences that fail leave.

        They take what the inputs have left of the forward, `room` positions. Rows are not counted: a
        canvas that is read ahead stores nothing.
        """
        ahead, failed = dict[int, list[ForwardInput]](), list[Event]()
        for item in inputs:
            if not may_read_ahead(item):
                ahead[id(item.sequence)] = []
                continue
            with ErrorCapture() as capture:
                guesses = inputs_ahead(item, self.runner)
            if capture.error is not None:
                self.remove(item.sequence)
                failed.append(Event(item.sequence.canvas, Edit(), item.sequence, capture.error))
                continue
            fitting = ahead[id(item.sequence)] = []
            for guess in guesses:  # the nearest first: a later one is of no use without it
                if (cost := self._cost(guess)) > room:
                    break
                room -= cost
                fitting.append(guess)
        return ahead, failed

    def _advance_ahead(
        self,
        sequence: SequenceState,
        guesses: deque[ForwardInput],
        seen: Mapping[int, Observation],
    ) -> Event | None:
        """Make the step of a reading ahead if its canvas came true; else keep the input for later."""
        with ErrorCapture() as capture:
            item = self.runner.prepare(sequence, self.max_tokens)
        if capture.error is not None:
            return None  # the next plan meets it again
        if not is_same_forward(item, guesses[0]):
            self._inputs[id(sequence)] = item
            return None
        guess = guesses.popleft()
        sequence.num_ahead += 1
        sequence.num_logit_rows += guess.sequence.num_logit_rows
        observation = seen[id(guess)]
        self._count(item)
        return self._advance(item, observation, decide_all([item], [observation])[0])

    def _plan(self) -> list[Event]:
        """Prepare every sequence's input and reserve its pages; sequences that fail leave the batch."""
        failed = []
        for sequence in list(self.active):
            if id(sequence) not in self._inputs:
                with ErrorCapture() as capture:
                    self._inputs[id(sequence)] = self.runner.prepare(sequence, self.max_tokens)
                if capture.error is not None:
                    self.remove(sequence)
                    failed.append(Event(sequence.canvas, Edit(), sequence, capture.error))
        for sequence in list(self.active):  # the oldest first: its pages always suffice
            while id(sequence) in self._inputs and not self.runner.reserve_pages(
                self._inputs[id(sequence)]
            ):
                self._preempt(next(s for s in reversed(self.active) if self.runner.is_paged(s)))
        return failed

    def _preempt(self, sequence: SequenceState) -> None:
        self.remove(sequence)
        sequence.num_preempted += 1
        self.preempted.append(sequence)

    def _choose(self) -> tuple[list[ForwardInput], float]:
        """Return the inputs of this forward, in the order of their turns as long as they fit.

        Second is the number of positions that are left, `inf` without a limit.
        """
        chosen, num_rows = list[ForwardInput](), self.runner.max_rows
        room = math.inf if self.max_tokens is None else self.max_tokens
        costs = {key: self._cost(item) for key, item in self._inputs.items()}
        fits = sum(costs.values()) <= room and len(self.runner.metas) <= num_rows
        for sequence in self.active if fits else self._by_turn():
            item = self._inputs[id(sequence)]
            cost, rows = costs[id(sequence)], sequence.num_rows
            if chosen and (cost > room or rows > num_rows):
                self._num_deferred[id(sequence)] = self._num_deferred.get(id(sequence), 0) + 1
                continue
            room, num_rows = room - cost, num_rows - rows
            chosen.append(item)
        for item in chosen:
            del self._inputs[id(item.sequence)]
            self._num_deferred.pop(id(item.sequence), None)
        return chosen, room

    def _by_turn(self) -> list[SequenceState]:
        """Return the active sequences: those deferred too often, small ones, then by deferrals and age."""
        work = {id(sequence): work_left(sequence) for sequence in self.active}
        most = max(work.values(), default=0)

        def turn(sequence: SequenceState) -> tuple[int, int]:
            num_deferred = self._num_deferred.get(id(sequence), 0)
            if num_deferred >= MAX_DEFERRED:
                return 0, -num_deferred
            is_small = SMALLER * work[id(sequence)] <= most
            return 1 if is_small else 2, -num_deferred

        return sorted(self.active, key=turn)

    def _cost(self, item: ForwardInput) -> int:
        """Return the number of positions that an input computes, over all of its rows."""
        num_layers = self.runner.model.spec.num_layers
        return item.num_queries(num_layers) * item.sequence.num_rows

    def _count(self, item: ForwardInput) -> None:
        """Count the positions that an input computes."""
        sequence, queries, cost = item.sequence, item.plan.queries, self._cost(item)
        self.num_computed += cost
        if len(queries):
            num_asked = len(queries) - int(queries.searchsorted(sequence.canvas.prompt_length))
            share = num_asked / len(queries)
            num_answer = round(cost * share)
            self.num_answer += num_answer
            sequence.num_answer += num_answer
        sequence.count(queries, cost)

    def _advance(
        self, item: ForwardInput, observation: Observation, answer: Answer
    ) -> Event | None:
        """Apply the decoder's answer and return the event, if the decoder ran."""
        sequence, before, edit = item.sequence, item.sequence.canvas, Edit()
        if not item.runs_decoder:
            return None
        with ErrorCapture() as capture:
            edit = accept(sequence, observation.reading, answer)
            sequence.advance(edit, self._cost(item), observation)
            self.runner.follow(sequence, before)
            if not sequence.cache_bytes or len(sequence.canvas) > len(before):
                size_bytes = self.runner.cache_bytes(sequence)
                sequence.cache_bytes = max(sequence.cache_bytes, size_bytes)
        request = sequence.request
        has_likeliest = request.num_likeliest or request.named
        reading = observation.reading if has_likeliest else None
        is_last = sequence.finish_reason is not None
        return Event(before, edit, sequence, capture.error, reading, is_last)


def decode(waiting: Iterable[SequenceState], runner: ModelRunner) -> Iterator[Event]:
    """Decode sequences until all are finished, as many at a time as the runner admits.

    Finished sequences are replaced before the next forward. The loop terminates: every forward commits at
    least one position of every sequence or is followed by one that does, and past `max_forwards` each
    commits all positions of its reading. An exception of one sequence is raised.
    """
    queue, batch = deque(waiting), Scheduler(runner)
    while queue or batch.active:
        while queue and batch.has_room(queue[0]):
            batch.admit(queue.popleft())
        for event in batch.step():
            if event.error is not None:
                raise event.error
            yield event


Answer: TypeAlias = tuple[Edit, object] | BaseException
"""A decoder's edit and its next state, or the exception of the sequence."""
IDLE: tuple[Edit, object] = (Edit(), None)


def decide_all(inputs: list[ForwardInput], observations: list[Observation]) -> list[Answer]:
    """Return the decoder's answer of each sequence, checked; those that do not decide have an empty one."""
    odds = [observation.reading.log_odds for observation in observations]
    has_nan = bool(np.isnan(np.concatenate(odds)).any())
    answers = list[Answer]()
    pairs = dict[int, tuple[Edit, object]]()
    for i, (item, observation) in enumerate(zip(inputs, observations, strict=True)):
        pair = IDLE
        with ErrorCapture() as capture:
            if item.runs_decoder:
                if has_nan and np.isnan(odds[i]).any():
                    raise ModelError(NOT_FINITE)
                pair = pairs[i] = _ask_decoder(item.sequence, observation.reading)
        answers.append(pair if capture.error is None else capture.error)
    if not pairs:
        return answers
    sequences = [inputs[i].sequence for i in pairs]
    rules = edit_faults(
        [sequence.canvas for sequence in sequences],
        [edit for edit, _ in pairs.values()],
        sequences[0].request.facts.vocab_size,
    )
    for i, sequence, rule in zip(pairs, sequences, rules, strict=True):
        if rule is not None:
            name = sequence.request.decoder.name
            answers[i] = DecoderError(rule, name, sequence.num_forwards)
    return answers


def _ask_decoder(sequence: SequenceState, reading: Reading) -> tuple[Edit, object]:
    """Return a decoder's answer to a reading, a pair; its edit is not checked."""
    request = sequence.request
    if not len(reading.positions):
        raise CacheError(
            "CachePlan.queries has none of the rows that answer the asked positions",
            request.cache.name,
            sequence.num_forwards,
        )
    answer = request.decoder.step(sequence.canvas, sequence.decoder_state, reading)
    rule = pair_fault("step", "an Edit", answer)
    if rule is not None:
        raise DecoderError(rule, request.decoder.name, sequence.num_forwards)
    return answer


def accept(sequence: SequenceState, reading: Reading, answer: Answer) -> Edit:
    """Return the edit of an answer; force progress if it commits nothing or revises for too long."""
    if isinstance(answer, BaseException):
        raise answer
    request, canvas = sequence.request, sequence.canvas
    edit, sequence.decoder_state = answer
    if request.max_edits is not None:
        shadows = NO_POSITIONS if sequence.ask is None else sequence.ask.shadows
        edit = within_edits(request, canvas, edit, shadows, reading)
    edit = restrict(request, canvas, sequence.limit, edit, reading)
    if request.sampling_params.vocabulary == "adaptive":
        sequence.sampler_state.record(reading.undecided(canvas).confidence, edit.tokens)
        edit = replace(edit, notes={"vocab_size": float(reading.top_v or 0), **edit.notes})
    if sequence.num_forwards >= sequence.max_forwards:
        sequence.num_forced += 1
        undecided = reading.undecided(canvas)
        everything = undecided.commit(np.arange(len(undecided.positions)))
        return restrict(request, canvas, sequence.limit, everything, reading)
    if edit.is_empty and len((undecided := reading.undecided(canvas)).positions):
        sequence.num_forced += 1
        best = undecided.commit(np.argmax(undecided.log_odds, keepdims=True))
        return restrict(request, canvas, sequence.limit, best, reading)
    return edit
