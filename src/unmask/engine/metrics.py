"""Counters of an engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Event
from unmask.engine.sequence import SequenceState

DECAY = 0.9
"""Weight of the previous mean in the moving average of the request time."""
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of the classes in which forwards are counted by their computed positions."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine: its present state, and monotonic counters since its start.

    State: `queued` and `running` requests; `rows_free` of the batch's `rows_total` rows; `pages_free` of
    `pages_total` pages are not in use (0 pages: the model has none), `pages_cached` of these are cached;
    `dense_bytes` of dense stores.
    Counters: `num_forwards` took `forward_s` seconds, host work included, and computed `num_queries`
    positions, `num_answer` of them behind a prompt and `num_wasted` right of an end token (counted when a
    request ends). They committed `num_committed` tokens in `num_steps` decoder steps of single requests.
    `num_commit_steps` commit steps over `num_commit_positions` positions are vLLM's count of complete
    canvases, see `commit_steps`. `sizes`: forwards by computed positions, in the classes of `SIZE_BUCKETS`
    and one above them.
    `num_preempted` preemptions for lack of pages. `prefix_found` of `prefix_asked` decided positions of
    admitted requests were in cached pages. `ended`: requests by the kind of their end. `listener_errors`:
    exceptions of listeners.
    """

    queued: int
    running: int
    rows_free: int
    rows_total: int
    num_forwards: int
    num_steps: int
    num_commit_steps: int
    num_commit_positions: int
    num_committed: int
    num_queries: int
    num_answer: int
    num_wasted: int
    num_preempted: int
    forward_s: float
    pages_total: int
    pages_free: int
    pages_cached: int
    prefix_asked: int
    prefix_found: int
    dense_bytes: int
    ended: dict[str, int]
    sizes: tuple[int, ...]
    listener_errors: int


@dataclass
class EngineCounters:
    """The counters, modified on the engine's thread only.

    `request_s` is the mean time of requests from their first forward to their end (0: none has ended).
    """

    num_forwards: int = 0
    num_steps: int = 0
    num_commit_steps: int = 0
    num_commit_positions: int = 0
    num_committed: int = 0
    num_queries: int = 0
    num_answer: int = 0
    num_wasted: int = 0
    num_preempted: int = 0
    forward_s: float = 0.0
    listener_errors: int = 0
    request_s: float = 0.0
    sizes: list[int] = field(default_factory=lambda: [0] * (len(SIZE_BUCKETS) + 1))
    ended: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "aborted", "timeout", "error"), 0)
    )

    def forward(
        self, events: Sequence[Event], num_computed: int, num_answer: int, seconds: float
    ) -> None:
        """Count a forward."""
        if num_computed:
            self.num_forwards += 1
            self.sizes[bisect_left(SIZE_BUCKETS, num_computed)] += 1
        self.num_queries += num_computed
        self.num_answer += num_answer
        self.forward_s += seconds
        for event in events:
            if event.error is None:
                self.num_steps += 1
                self.num_committed += len(event.edit.commit)
                if event.is_last:
                    self.num_wasted += event.sequence.num_wasted

    def end(self, kind: str, seconds: float, sequence: SequenceState) -> None:
        """Count the end of a request, `seconds` after its first forward."""
        self.ended[kind] += 1
        if kind == "done":
            steps, positions = commit_steps(sequence)
            self.num_commit_steps += steps
            self.num_commit_positions += positions
            weight = DECAY if self.request_s else 0.0
            self.request_s = weight * self.request_s + (1 - weight) * seconds

    def snapshot(self, queued: int, running: int, runner: ModelRunner) -> EngineStats:
        """Return a snapshot of the counters and the state."""
        paging = runner.paging
        return EngineStats(
            queued=queued,
            running=running,
            rows_free=max(0, runner.max_rows - len(runner.metas)),
            rows_total=runner.max_rows,
            num_forwards=self.num_forwards,
            num_steps=self.num_steps,
            num_commit_steps=self.num_commit_steps,
            num_commit_positions=self.num_commit_positions,
            num_committed=self.num_committed,
            num_queries=self.num_queries,
            num_answer=self.num_answer,
            num_wasted=self.num_wasted,
            num_preempted=self.num_preempted,
            forward_s=self.forward_s,
            pages_total=0 if paging is None else paging.store.pool.total,
            pages_free=0 if paging is None else paging.store.pool.num_available,
            pages_cached=0 if paging is None else paging.store.pool.num_cached,
            prefix_asked=0 if paging is None else paging.prefix_stats.num_positions,
            prefix_found=0 if paging is None else paging.prefix_stats.num_hits,
            dense_bytes=sum(rows.bytes_with(0, 0) for rows in runner.dense.values()),
            ended=dict(self.ended),
            sizes=tuple(self.sizes),
            listener_errors=self.listener_errors,
        )


def commit_steps(sequence: SequenceState) -> tuple[int, int]:
    """Return the commit steps of a complete answer, and the positions that they evaluate.

    vLLM ends every canvas with a step that commits it, over all of its positions, and its benchmark
    subtracts one step per canvas; the length of a canvas is the mean number of positions per step. Here no
    such step is run, so it is counted: as many canvases as the committed tokens fill, at least one.
    """
    if not sequence.num_forwards or not sequence.num_answer:
        return 0, 0
    length = sequence.num_answer / sequence.num_forwards
    num_committed = sum(len(edit.commit) for edit, _, _ in sequence.changes)
    steps = max(1, round(num_committed / length))
    return steps, round(steps * length)
