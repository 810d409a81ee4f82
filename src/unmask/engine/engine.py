"""The engine of a server: requests are submitted from any thread and decoded together in one thread.

The batch is re-formed before every round of forwards: aborted, timed-out and stopped requests leave, and
queued ones are admitted; finished ones have left already. The forward itself is `Scheduler.step`, as in the
library.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from unmask.canvas import Canvas, Edit, Reading
from unmask.distributed.tensor_parallel import new_paged_store
from unmask.engine.config import EngineConfig
from unmask.engine.kv_budget import KVBudget
from unmask.engine.kv_paged import PagedKV
from unmask.engine.metrics import EngineCounters, EngineStats
from unmask.engine.model_runner import ModelRunner
from unmask.engine.outputs import Output
from unmask.engine.request import Request
from unmask.engine.scheduler import Event, Scheduler
from unmask.engine.sequence import SequenceState
from unmask.engine.shares import most_work, num_extra_rows, work_at_most, work_left
from unmask.engine.static_step import captured
from unmask.engine.threads import ErrorCapture
from unmask.errors import CapacityError, EngineError
from unmask.knobs import positive
from unmask.sampling.transfer import is_asynchronous

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

DEFAULT_CONFIG = EngineConfig()
UpdateKind = Literal["step", "done", "aborted", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """The progress of a request: "step" after each of its forwards, then exactly one of the other kinds.

    `before` is the canvas before the forward, `edit` the change (empty unless "step"), `canvas` the
    result. `num_settled` positions from the left, prompt included, are decided and final; `num_cached` of
    them had their keys in the prefix cache. `num_queries` positions were computed in `num_forwards`
    forwards, `num_draft_queries` and `num_draft_forwards` of them by a smaller model. `queue_s` are the
    seconds from submission to the first forward, or to now. `output` comes with
    "done", `error` with "error".
    """

    handle: RequestHandle
    kind: UpdateKind
    canvas: Canvas
    before: Canvas
    edit: Edit
    num_settled: int
    num_forwards: int
    num_queries: int
    num_draft_forwards: int
    num_draft_queries: int
    num_cached: int
    queue_s: float
    output: Output | None = None
    error: BaseException | None = None
    reading: Reading | None = None
    """The forward's reading, for a request of log-probabilities."""


Listener = Callable[[RequestUpdate], None]


@dataclass(eq=False)
class RequestHandle:
    """A submitted request; its fields belong to the engine."""

    sequence: SequenceState
    listener: Listener
    submitted_s: float
    deadline_s: float | None
    work: int
    """Positions to compute at most, which tells whether it is a small request (`engine.shares`)."""
    num_open: int
    """Open positions at its submission."""
    started_s: float | None = None
    num_changes: int = 0
    """Number of changes of the engine before the request began."""
    requested_end: Literal["abort", "stop"] | None = None
    wake: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def finish(self) -> None:
        """End the request with "done" and finish reason "stop", as after a stop string.

        It takes effect before the next round, up to `steps_per_round - 1` forwards later (and after the
        present one); the output has the positions that are settled by then. No effect on an ended request.
        Thread-safe.
        """
        with self.wake:
            self.requested_end = self.requested_end or "stop"
            self.wake.notify()

    @property
    def queue_s(self) -> float:
        """Seconds from submission to the first forward, or to now."""
        until = time.monotonic() if self.started_s is None else self.started_s
        return until - self.submitted_s


@dataclass(eq=False)
class _Change:
    """Work to be done while no request is in progress."""

    work: Callable[[], None]
    begun_s: float = 0.0
    has_begun: bool = False
    is_done: bool = False


def _has_begun(handle: RequestHandle) -> bool:
    return handle.started_s is not None


class Engine:
    """A thread that decodes submitted requests in one batch, re-formed before every round of forwards.

    `config` sets the sizes and limits. A guided request takes two rows of a forward; a prompt longer than
    `max_num_batched_tokens` is computed in parts where the cache allows it. Requests start first come,
    first served; one that fits may overtake others that do not, until those have waited `max_wait` seconds,
    and one that is small beside those in the batch does not wait for them (`engine.shares`): up to
    `num_extra_rows(max_num_seqs)` rows more than a forward has are in the batch, and take turns.
    With `enable_prefix_caching`, on a block-causal model with cache block_causal, full blocks that one
    request has computed serve others with the same prefix. A round has `steps_per_round` forwards: 1 has
    the lowest latency; more need less host work, but arrivals, aborts, stops and timeouts wait for the end
    of the round.

    On a CPU a listener is notified right after each forward. A device that computes while the host goes on
    (CUDA) need not wait for listeners: they are notified of a forward during the next one, but of the end
    of a request, and of the forwards before it, at once.

    The attribute `on_failure` may be set to a function that is called on the engine's thread when the
    engine has failed, after all listeners were notified.

    Call `start`, or use the engine as a context manager, which also stops it. Raises ConfigError for
    impossible sizes.
    """

    def __init__(self, llm: LLM, config: EngineConfig = DEFAULT_CONFIG) -> None:
        self.llm, self.config = llm, config
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._wake = threading.Condition()
        self._queue: deque[RequestHandle] = deque()
        self._running: dict[int, RequestHandle] = {}
        self._small: dict[int, int] = {}
        """The rows of the sequences in extra rows, by the sequences' ids."""
        self._num_extra = num_extra_rows(config.max_num_seqs)
        self._accepts, self._stops = False, False
        self._counters = EngineCounters()
        self._thread: threading.Thread | None = None
        self._next_index = 0
        self._change: _Change | None = None
        self.num_changes = 0
        """Number of completed changes."""
        self._beat_s: float | None = None
        self.is_overlapping = is_asynchronous(llm.model.device)
        """Notify listeners of a step during the next forward."""
        self._waiting: dict[RequestHandle, list[RequestUpdate]] = {}
        """Updates of steps that listeners were not notified of, all of requests that have not ended."""
        self._batch = Scheduler(_runner(llm, config), config.max_num_batched_tokens)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread. Raises EngineError if it was started already."""
        with self._wake:
            if self._thread is not None:
                raise EngineError("the engine was started already; create a new one")
            self._thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)
            self._accepts = True
        self._thread.start()

    def submit(
        self, request: Request, listener: Listener, *, deadline_s: float | None = None
    ) -> RequestHandle:
        """Queue a request (see `LLM.request`) and return its handle. Thread-safe.

        `listener` is called on the engine's thread for each forward of the request and once at its end:
        it must return immediately, and if it raises, the request is aborted. After `deadline_s` seconds the
        request ends with "timeout". Raises CapacityError when the queue is full or the engine is stopping,
        EngineError when it has failed or was not started, and ConfigError for a request that exceeds the
        engine's limits.
        """
        sequence = SequenceState.begin(request)
        self._batch.runner.check_fit(sequence)
        if deadline_s is not None:
            positive("deadline_s", deadline_s)
        now = time.monotonic()
        until = None if deadline_s is None else now + deadline_s
        work, num_open = work_at_most(sequence), sequence.canvas.num_open
        handle = RequestHandle(sequence, listener, now, until, work, num_open, wake=self._wake)
        with self._wake:
            self.check_accepts()
            sequence.index = self._next_index
            self._next_index += 1
            self._queue.append(handle)
            self._wake.notify()
        return handle

    def check_accepts(self, *, is_request: bool = True) -> None:
        """Raise CapacityError or EngineError if `submit` would refuse any request now.

        Without `is_request` the queue may be full.
        """
        if self.failure is not None:
            raise EngineError("the engine has failed; restart the server") from self.failure
        if self._thread is None:
            raise EngineError("the engine was not started; call start()")
        if not self._accepts:
            raise CapacityError("the engine is stopping and accepts no more requests", 1.0)
        if is_request and len(self._queue) >= self.config.max_queue:
            wait = self._seconds_until_room()
            raise CapacityError(
                f"{len(self._queue)} requests are waiting, at most {self.config.max_queue} may; try again "
                f"in {wait:.0f} s",
                wait,
            )

    def _seconds_until_room(self) -> float:
        """Estimate the time until a request leaves the queue, from the progress of those in the batch."""
        with self._wake:
            running = list(self._running.values())
        regular = [handle for handle in running if id(handle.sequence) not in self._small]
        waits = [self._seconds_left(handle) for handle in regular or running]
        return max(1.0, min(waits, default=self._counters.request_s))

    def _seconds_left(self, handle: RequestHandle) -> float:
        if handle.started_s is None:
            return self._counters.request_s
        elapsed_s, num_open = time.monotonic() - handle.started_s, handle.sequence.canvas.num_open
        num_decided = handle.num_open - num_open
        if num_decided <= 0:
            return max(elapsed_s, self._counters.request_s - elapsed_s)
        return elapsed_s * num_open / num_decided

    @property
    def accepts(self) -> bool:
        """True while requests can be submitted: after `start`, until `drain`, `stop` or a failure."""
        return self._accepts

    def abort(self, handle: RequestHandle) -> None:
        """End a request with "aborted", before the next round of forwards.

        No effect on an ended request. Thread-safe.
        """
        with self._wake:
            handle.requested_end = "abort"
            self._wake.notify()

    @property
    def stats(self) -> EngineStats:
        """A snapshot of the engine's state and counters."""
        with self._wake:
            return self._counters.snapshot(
                queued=len(self._queue), running=len(self._running), runner=self._batch.runner
            )

    @property
    def stalled_s(self) -> float:
        """Seconds since the engine began its present forward or visit to the queue; 0 while it waits.

        Read without a lock, which a thread that hangs might hold.
        """
        beat_s = self._beat_s
        return 0.0 if beat_s is None else time.monotonic() - beat_s

    def change(self, work: Callable[[], None], timeout_s: float) -> float:
        """Call `work` on the engine's thread between requests; return the seconds of the wait. Thread-safe.

        Requests that have begun are decoded to their end before, all others after it: none sees both
        states. Cached prefixes are dropped. If `work` raises, the engine has failed. Raises CapacityError
        if another change waits, or the requests do not end within the timeout, and EngineError from a
        failed engine.
        """
        began, change = time.monotonic(), _Change(work)
        with self._wake:
            self.check_accepts(is_request=False)
            if self._change is not None:
                raise CapacityError("another change waits for the running requests; try again", 1.0)
            self._change = change
            self._wake.notify_all()
            self._wake.wait_for(lambda: change.is_done or not self._accepts, timeout_s)
            if not change.has_begun:
                self._change = None
                self._wake.notify_all()
                self.check_accepts(is_request=False)
                raise CapacityError(
                    f"{len(self._running)} running requests did not end within {timeout_s:g} s; nothing "
                    f"was changed; try again",
                    1.0,
                )
            self._wake.wait_for(lambda: change.is_done or self.failure is not None)
        if self.failure is not None:
            raise EngineError("the engine has failed; restart the server") from self.failure
        return change.begun_s - began

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, wait for the accepted ones; return whether all ended within the timeout."""
        until = time.monotonic() + timeout_s
        with self._wake:
            self._accepts = False
            return self._wake.wait_for(
                lambda: not (self._queue or self._running), max(0.0, until - time.monotonic())
            )

    def stop(self, timeout_s: float | None = None) -> bool:
        """End all requests with "aborted" and join the thread; return whether it has ended.

        `timeout_s` bounds the wait for a forward that does not end.
        """
        with self._wake:
            self._accepts, self._stops = False, True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    # the engine's thread

    def _run(self) -> None:
        with ErrorCapture(everything=True) as capture:
            while self._await_work():
                for _ in range(self.config.steps_per_round):
                    if self._batch.active:
                        self._forward()
        self._beat_s = None
        self._end_remaining(capture.error)

    def _await_work(self) -> bool:
        """Wait until there are sequences to decode and admit requests; return False after `stop`."""
        while True:
            self._beat_s = time.monotonic()
            with self._wake:
                if self._stops:
                    return False
                ending, change = self._ending(), self._change
                if change is not None and (self._running or any(map(_has_begun, self._queue))):
                    change = None  # not yet
                is_idle = not self._queue and not self._running
                if not ending and change is None and is_idle:
                    self._wake.notify_all()
                    self._beat_s = None
                    self._wake.wait()
                    self._beat_s = time.monotonic()
            for handle, kind in ending:
                self._end(handle, kind)
            if change is not None:
                self._apply(change)
            self._admit()
            if self._running:
                return True

    def _apply(self, change: _Change) -> None:
        """Make a change, unless its caller has given up."""
        with self._wake:
            if self._change is not change:
                return
            change.begun_s, change.has_begun = time.monotonic(), True
        change.work()
        if self._batch.runner.paging is not None:
            self._batch.runner.paging.store.pool.clear_cached()
        with self._wake:
            change.is_done, self._change = True, None
            self.num_changes += 1
            self._wake.notify_all()

    def _startable(self) -> list[RequestHandle]:
        """Return the queued requests in order; while a change waits, those alone that have begun."""
        return [each for each in self._queue if self._change is None or _has_begun(each)]

    def _ending(self) -> list[tuple[RequestHandle, UpdateKind]]:
        """Return the requests to end now, with the kind of their last update."""
        now, ending = time.monotonic(), list[tuple[RequestHandle, UpdateKind]]()
        for handle in (*self._queue, *self._running.values()):
            if handle.requested_end is not None:
                ending.append((handle, "aborted" if handle.requested_end == "abort" else "done"))
            elif handle.deadline_s is not None and now >= handle.deadline_s:
                ending.append((handle, "timeout"))
        return ending

    def _admit(self) -> None:
        """Admit requests in FIFO order; one that does not fit may be overtaken for at most `max_wait`.

        Then small requests are admitted to the extra rows. A request ends with "error" if its memory cannot
        be allocated although the budget allows it.
        """
        skipped = 0
        while True:
            now = time.monotonic()
            with self._wake:
                handle = next(iter(self._startable()[skipped:]), None)
                if handle is None:
                    break
                num_extra = sum(self._small.values())  # the other rows are not theirs
                if not self._batch.has_room(handle.sequence, num_extra):
                    if now - handle.submitted_s > self.config.max_wait:
                        break
                    skipped += 1
                    continue
            self._begin(handle)
        while (small := self._next_small()) is not None:
            self._small[id(small.sequence)] = small.sequence.num_rows
            self._begin(small)

    def _next_small(self) -> RequestHandle | None:
        """Return the first waiting request that is small beside those in the batch and fits, else None."""
        with self._wake:
            waiting = self._startable()
        if not waiting:
            return None
        num_taken = sum(self._small.values())
        largest = max((work_left(sequence) for sequence in self._batch.active), default=0)
        most = most_work(largest, num_taken, self._num_extra)
        for handle in waiting:
            rows = handle.sequence.num_rows
            is_small = handle.work <= most and num_taken + rows <= self._num_extra
            if is_small and self._batch.has_room(handle.sequence, self._num_extra):
                return handle
        return None

    def _begin(self, handle: RequestHandle) -> None:
        """Move a request from the queue to the batch."""
        with self._wake:
            self._queue.remove(handle)
            self._running[id(handle.sequence)] = handle
        if handle.started_s is None:
            handle.started_s, handle.num_changes = time.monotonic(), self.num_changes
        with ErrorCapture() as capture:
            self._batch.admit(handle.sequence)
        if capture.error is not None:
            self._end(handle, "error", error=capture.error)

    def _forward(self) -> None:
        self._beat_s = began = time.monotonic()
        events = self._batch.step(self._notify_waiting)
        with self._wake:
            self._counters.forward(
                events, self._batch.num_computed, self._batch.num_answer, time.monotonic() - began
            )
            for sequence in self._batch.preempted:
                preempted = self._running.pop(id(sequence))
                self._small.pop(id(sequence), None)
                insort(self._queue, preempted, key=lambda each: each.sequence.index)
                self._counters.num_preempted += 1
            self._batch.preempted.clear()
        for event in events:
            handle = self._running.get(id(event.sequence))
            if handle is None:
                continue  # an earlier event of this forward has ended it with an error
            with ErrorCapture() as capture:
                num_settled = event.sequence.num_settled
            error = event.error or capture.error
            if error is not None:
                self._end(handle, "error", error=error)
                continue
            update = _update(handle, "step", num_settled, event)
            self._waiting.setdefault(handle, []).append(update)
            if not self.is_overlapping:
                self._notify(handle)
            if event.is_last:
                self._end(handle, "done")

    def _end(
        self, handle: RequestHandle, kind: UpdateKind, error: BaseException | None = None
    ) -> None:
        """Free the resources of a request; notify its listener of steps that wait, then of the end."""
        self._notify(handle)
        sequence, output, num_settled = handle.sequence, None, 0
        with ErrorCapture() as capture:
            num_settled = sequence.num_settled
            if kind == "done":
                sequence.finish_reason = sequence.finish_reason or "stop"
                output = self.llm.output(sequence, return_trace=True)
        if kind == "done" and capture.error is not None:
            kind, error = "error", capture.error
        if self.failure is None:  # after a failure, freeing could fail too
            self._batch.remove(sequence)
        with self._wake:
            if handle in self._queue:
                self._queue.remove(handle)
            self._running.pop(id(sequence), None)
            self._small.pop(id(sequence), None)
            began_s = handle.started_s or time.monotonic()
            self._counters.end(kind, time.monotonic() - began_s, sequence)
            self._wake.notify_all()
        self._waiting[handle] = [_update(handle, kind, num_settled, None, output, error)]
        self._notify(handle)

    def _notify_waiting(self) -> None:
        """Call the listeners of all requests with updates that wait."""
        for handle in list(self._waiting):
            self._notify(handle)

    def _notify(self, handle: RequestHandle) -> None:
        """Call a request's listener with its updates that wait, in their order."""
        for update in self._waiting.pop(handle, ()):
            with ErrorCapture() as capture:
                handle.listener(update)
            if capture.error is not None:
                handle.requested_end = "abort"
                self._counters.listener_errors += 1

    def _end_remaining(self, failure: BaseException | None) -> None:
        with self._wake:
            self.failure, self._accepts = failure, False
            self._wake.notify_all()
            handles = [*self._queue, *self._running.values()]
        for handle in handles:
            if failure is None:
                self._end(handle, "aborted")
            else:
                error = EngineError(f"the engine has failed: {failure}; restart the server")
                error.__cause__ = failure
                self._end(handle, "error", error=error)
        if failure is not None:
            self.on_failure()


def _update(
    handle: RequestHandle,
    kind: UpdateKind,
    num_settled: int,
    event: Event | None,
    output: Output | None = None,
    error: BaseException | None = None,
) -> RequestUpdate:
    """Return an update of a request as it is now; an event is that of its last step."""
    sequence = handle.sequence
    return RequestUpdate(
        handle=handle,
        kind=kind,
        canvas=sequence.canvas,
        before=sequence.canvas if event is None else event.before,
        edit=Edit() if event is None else event.edit,
        num_settled=num_settled,
        num_forwards=sequence.all_forwards,
        num_queries=sequence.all_queries,
        num_draft_forwards=sequence.num_draft_forwards,
        num_draft_queries=sequence.num_draft_queries,
        num_cached=sequence.num_cached,
        queue_s=handle.queue_s,
        output=output,
        error=error,
        reading=None if event is None else event.reading,
    )


def _runner(llm: LLM, config: EngineConfig) -> ModelRunner:
    """Return a runner with memory that grows up to the budget of `config`."""
    model = llm.model
    budget = KVBudget.of(model, config.max_num_seqs, config.kv_cache_memory_bytes)
    paging = None
    if budget.num_pages:
        paging = PagedKV(new_paged_store(model, budget.num_pages, config.enable_prefix_caching))
    return llm.make_runner(
        model,
        llm.vocabulary,
        config.max_num_seqs,
        paging=paging,
        dense_bytes=budget.dense_bytes,
        adapters=llm.adapters,
        capture=captured if config.cuda_graphs and llm.cuda_graphs else None,
    )
