"""The engine of a server: requests come in from any thread, one thread decodes them together.

Before every round of forwards (one, unless told otherwise) the batch is formed anew: who is done has left,
who was aborted, timed out or ended by its listener leaves, and the next in the queue come in. The forward
itself is `engine.loop.Scheduler.step`, the one that the library takes.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from unmask.canvas import Canvas, Edit
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
from unmask.engine.threads import ErrorCapture
from unmask.errors import CapacityError, EngineError
from unmask.knobs import positive

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

DEFAULT_CONFIG = EngineConfig()
UpdateKind = Literal["step", "done", "aborted", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What became of a request: a "step" after each of its forwards, then exactly one of the others.

    `before` and `edit`: the canvas that the forward saw and what changed (empty unless "step");
    `canvas` as it is now. `num_settled`: positions from the left, prompt included, that are decided and
    will not change any more. `num_cached` of them had their keys in the prefix cache. `num_queries`
    positions were computed in `num_forwards`. `queue_s`: seconds
    from submission to the first forward, or to now.
    `output` comes with "done", `error` with "error".
    """

    handle: RequestHandle
    kind: UpdateKind
    canvas: Canvas
    before: Canvas
    edit: Edit
    num_settled: int
    num_forwards: int
    num_queries: int
    num_cached: int
    queue_s: float
    output: Output | None = None
    error: BaseException | None = None


Listener = Callable[[RequestUpdate], None]


@dataclass(eq=False)
class RequestHandle:
    """A submitted request; its fields belong to the engine."""

    sequence: SequenceState
    listener: Listener
    submitted_s: float
    deadline_s: float | None
    started_s: float | None = None
    wish: Literal["abort", "stop"] | None = None
    wake: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def finish(self) -> None:
        """End the request as if an end token stood there: "done", reason "stop".

        It takes effect at the engine's next look at the queue, so up to `steps_per_round - 1` forwards
        later. The output is what is settled by then. For a stop string that has been found. Has no effect
        once it is over. Callable from any thread.
        """
        with self.wake:
            self.wish = self.wish or "stop"
            self.wake.notify()

    @property
    def queue_s(self) -> float:
        """Seconds from submission to the first forward, or to now."""
        until = time.monotonic() if self.started_s is None else self.started_s
        return until - self.submitted_s


class Engine:
    """Decodes submitted requests in one thread, re-forming the batch before every round of forwards.

    `config` sets the sizes and limits. A guided request takes two rows of a forward; a prompt longer than
    `max_num_batched_tokens` is computed in parts where the cache allows it. Requests start first come,
    first served; one that fits may overtake others that do not, until those have waited `max_wait` seconds.
    With `enable_prefix_caching`, on a block-causal model with cache block_causal, full blocks that one
    request has computed serve others that begin alike. `steps_per_round` forwards are a round, made between
    two looks at the queue: 1 answers soonest; with more there is less host work, and arrivals, aborts, ends
    and timeouts wait for the round's end.
    `on_failure`, which may be set, is called on the engine's thread when it has failed, after every waiting
    listener was informed.
    Start it, or use it as a context manager, which stops it. Raises ConfigError for sizes that cannot be.
    """

    def __init__(self, llm: LLM, config: EngineConfig = DEFAULT_CONFIG) -> None:
        self.llm, self.config = llm, config
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._wake = threading.Condition()
        self._queue: deque[RequestHandle] = deque()
        self._running: dict[int, RequestHandle] = {}
        self._accepts, self._stops = False, False
        self._counters = EngineCounters()
        self._thread: threading.Thread | None = None
        self._next_index = 0
        self._batch = Scheduler(_runner(llm, config), config.max_num_batched_tokens)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to decode. Raises EngineError when it was started before."""
        with self._wake:
            if self._thread is not None:
                raise EngineError("the engine was started before; make a new one")
            self._thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)
            self._accepts = True
        self._thread.start()

    def submit(
        self, request: Request, listener: Listener, *, deadline_s: float | None = None
    ) -> RequestHandle:
        """Queue a request (`LLM.request` makes them).

        `listener` is called on the engine's thread, after each of its forwards and once at the end: it
        must return at once, and if it raises, its request is aborted. `deadline_s` seconds after now the
        request ends as "timeout", wherever it stands. Raises CapacityError when the queue is full or the
        engine is stopping, EngineError when it is dead or was never started, and ConfigError for a request
        that can never run here.
        """
        sequence = SequenceState.begin(request)
        self._batch.runner.check_fit(sequence)
        if deadline_s is not None:
            positive("deadline_s", deadline_s)
        now = time.monotonic()
        until = None if deadline_s is None else now + deadline_s
        handle = RequestHandle(sequence, listener, now, until, wake=self._wake)
        with self._wake:
            self._check_open()
            sequence.index = self._next_index
            self._next_index += 1
            self._queue.append(handle)
            self._wake.notify()
        return handle

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineError("the engine has failed; restart the server") from self.failure
        if self._thread is None:
            raise EngineError("the engine was not started; call start()")
        if not self._accepts:
            raise CapacityError("the engine is stopping and takes no more requests", 1.0)
        if len(self._queue) >= self.config.max_queue:
            wait = self._counters.seconds_for(len(self._queue), self.config.max_num_seqs)
            raise CapacityError(
                f"{len(self._queue)} requests wait already, at most {self.config.max_queue} may; try again "
                f"in {wait:.0f} s",
                wait,
            )

    @property
    def accepts(self) -> bool:
        """Whether requests are taken: it was started, and is not stopping, stopped or dead."""
        return self._accepts

    def abort(self, handle: RequestHandle) -> None:
        """End a request: "aborted", at the next look at the queue (see `steps_per_round`).

        Has no effect once it is over. Callable from any thread.
        """
        with self._wake:
            handle.wish = "abort"
            self._wake.notify()

    @property
    def stats(self) -> EngineStats:
        """A snapshot; counters never fall."""
        with self._wake:
            return self._counters.snapshot(
                queued=len(self._queue), running=len(self._running), runner=self._batch.runner
            )

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for those there are; whether all ended in time."""
        until = time.monotonic() + timeout_s
        with self._wake:
            self._accepts = False
            return self._wake.wait_for(
                lambda: not (self._queue or self._running), max(0.0, until - time.monotonic())
            )

    def stop(self) -> None:
        """End everything at once: who waits is told "aborted", the thread is gone afterwards."""
        with self._wake:
            self._accepts, self._stops = False, True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # the engine's thread

    def _run(self) -> None:
        with ErrorCapture(everything=True) as capture:
            while self._await_work():
                for _ in range(self.config.steps_per_round):
                    if self._batch.active:
                        self._forward()
        self._end_all(capture.error)

    def _await_work(self) -> bool:
        """Sleep until there is something to decode, let in who fits; False at the end."""
        while True:
            with self._wake:
                if self._stops:
                    return False
                over = self._take_over()
                if not over and not self._queue and not self._running:
                    self._wake.notify_all()
                    self._wake.wait()
            for handle, kind in over:
                self._end(handle, kind)
            self._admit()
            if self._running:
                return True

    def _take_over(self) -> list[tuple[RequestHandle, UpdateKind]]:
        """Who is to leave now, and how."""
        now, over = time.monotonic(), list[tuple[RequestHandle, UpdateKind]]()
        for handle in (*self._queue, *self._running.values()):
            if handle.wish is not None:
                over.append((handle, "aborted" if handle.wish == "abort" else "done"))
            elif handle.deadline_s is not None and now >= handle.deadline_s:
                over.append((handle, "timeout"))
        return over

    def _admit(self) -> None:
        """Let in who fits: the oldest first, past those that do not fit and have not waited long.

        Who cannot be given memory, though the budget has it, ends as an error; the others go on.
        """
        skipped = 0
        while True:
            now = time.monotonic()
            with self._wake:
                handle = next(iter(list(self._queue)[skipped:]), None)
                if handle is None:
                    return
                if not self._batch.has_room(handle.sequence):
                    if now - handle.submitted_s > self.config.max_wait:
                        return
                    skipped += 1
                    continue
                self._queue.remove(handle)
                self._running[id(handle.sequence)] = handle
            handle.started_s = handle.started_s or now
            with ErrorCapture() as capture:
                self._batch.admit(handle.sequence)
            if capture.error is not None:
                self._end(handle, "error", error=capture.error)

    def _forward(self) -> None:
        began = time.monotonic()
        events = self._batch.step()
        with self._wake:
            self._counters.forward(
                events, self._batch.num_computed, self._batch.num_answer, time.monotonic() - began
            )
            for sequence in self._batch.preempted:
                handle = self._running.pop(id(sequence))
                insort(self._queue, handle, key=lambda each: each.sequence.index)
                self._counters.num_preempted += 1
            self._batch.preempted.clear()
        for event in events:
            handle = self._running[id(event.sequence)]
            if event.error is not None:
                self._end(handle, "error", error=event.error)
                continue
            self._tell(handle, "step", event)
            if event.sequence.finish_reason is not None:
                self._end(handle, "done")

    def _end(
        self, handle: RequestHandle, kind: UpdateKind, error: BaseException | None = None
    ) -> None:
        """Free what a request holds, then tell its listener."""
        sequence, output = handle.sequence, None
        if kind == "done":
            with ErrorCapture() as capture:
                sequence.finish_reason = sequence.finish_reason or "stop"
                output = self.llm.output(sequence, return_trace=True)
            if capture.error is not None:
                kind, error = "error", capture.error
        if self.failure is None:  # freeing what a dead one holds could fail too
            self._batch.remove(sequence)
        with self._wake:
            if handle in self._queue:
                self._queue.remove(handle)
            self._running.pop(id(sequence), None)
            self._counters.end(kind, time.monotonic() - handle.submitted_s)
            self._wake.notify_all()
        self._tell(handle, kind, None, output, error)

    def _tell(
        self,
        handle: RequestHandle,
        kind: UpdateKind,
        event: Event | None,
        output: Output | None = None,
        error: BaseException | None = None,
    ) -> None:
        sequence = handle.sequence
        with ErrorCapture() as capture:
            handle.listener(
                RequestUpdate(
                    handle=handle,
                    kind=kind,
                    canvas=sequence.canvas,
                    before=sequence.canvas if event is None else event.before,
                    edit=Edit() if event is None else event.edit,
                    num_settled=sequence.num_settled,
                    num_forwards=sequence.num_forwards,
                    num_queries=sequence.num_queries,
                    num_cached=sequence.num_cached,
                    queue_s=handle.queue_s,
                    output=output,
                    error=error,
                )
            )
        if capture.error is not None:
            handle.wish = "abort"
            self._counters.listener_errors += 1

    def _end_all(self, failure: BaseException | None) -> None:
        with self._wake:
            self.failure, self._accepts = failure, False
            left = [*self._queue, *self._running.values()]
        for handle in left:
            if failure is None:
                self._end(handle, "aborted")
            else:
                error = EngineError(f"the engine has failed: {failure}; restart the server")
                error.__cause__ = failure
                self._end(handle, "error", error=error)
        if failure is not None:
            self.on_failure()


def _runner(llm: LLM, config: EngineConfig) -> ModelRunner:
    """Return a runner with memory that grows up to its budget."""
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
    )
