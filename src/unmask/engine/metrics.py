"""What an engine counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Event

RECENT = 0.9
"""How much of the mean request time is kept when one more is known."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot: what there is now, and counters since the start, which never fall.

    `queued` and `running` requests; `rows_free` of `rows_total` in the batch. `num_forwards` of the network
    took `forward_s` seconds, host work included, computed `num_queries` positions, of which `num_answer`
    were not of a prompt and `num_wasted` lay right of an end token (known when a request ends), and
    committed `num_committed` tokens in `num_steps` steps of single requests. `num_preempted`: how often a
    request lost its pages and came back.
    Of `pages_total` (0: the model has none) `pages_free` are held by nobody, `pages_cached` of them with
    content that a prompt may begin with; `prefix_found` of `prefix_asked` decided positions of admitted
    requests were found there. `dense_bytes` of other caches. `ended`: requests by how they ended.
    `listener_errors`: listeners that raised.
    """

    queued: int
    running: int
    rows_free: int
    rows_total: int
    num_forwards: int
    num_steps: int
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
    listener_errors: int


@dataclass
class EngineCounters:
    """The counters; only the engine's thread changes them."""

    num_forwards: int = 0
    num_steps: int = 0
    num_committed: int = 0
    num_queries: int = 0
    num_answer: int = 0
    num_wasted: int = 0
    num_preempted: int = 0
    forward_s: float = 0.0
    listener_errors: int = 0
    request_s: float = 1.0
    ended: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "aborted", "timeout", "error"), 0)
    )

    def forward(
        self, events: Sequence[Event], num_computed: int, num_answer: int, seconds: float
    ) -> None:
        """Count a forward."""
        self.num_forwards += num_computed > 0
        self.num_queries += num_computed
        self.num_answer += num_answer
        self.forward_s += seconds
        for event in events:
            if event.error is None:
                self.num_steps += 1
                self.num_committed += len(event.edit.commit)
                if event.sequence.finish_reason is not None:
                    self.num_wasted += event.sequence.num_wasted

    def end(self, kind: str, seconds: float) -> None:
        """Count a request that ended."""
        self.ended[kind] += 1
        if kind == "done":
            self.request_s = RECENT * self.request_s + (1 - RECENT) * seconds

    def seconds_for(self, waiting: int, rows: int) -> float:
        """About how long until one more would be taken, at least a second."""
        return max(1.0, self.request_s * (waiting + 1) / rows)

    def snapshot(self, queued: int, running: int, runner: ModelRunner) -> EngineStats:
        """The numbers as they are."""
        paging = runner.paging
        return EngineStats(
            queued=queued,
            running=running,
            rows_free=runner.max_rows - len(runner.metas),
            rows_total=runner.max_rows,
            num_forwards=self.num_forwards,
            num_steps=self.num_steps,
            num_committed=self.num_committed,
            num_queries=self.num_queries,
            num_answer=self.num_answer,
            num_wasted=self.num_wasted,
            num_preempted=self.num_preempted,
            forward_s=self.forward_s,
            pages_total=0 if paging is None else paging.store.pool.total,
            pages_free=0 if paging is None else paging.store.pool.num_available,
            pages_cached=0 if paging is None else paging.store.pool.num_cached,
            prefix_asked=0 if paging is None else paging.prefix_stats.num_asked,
            prefix_found=0 if paging is None else paging.prefix_stats.num_found,
            dense_bytes=sum(rows.bytes_with(0, 0) for rows in runner.dense.values()),
            ended=dict(self.ended),
            listener_errors=self.listener_errors,
        )
