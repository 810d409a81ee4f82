"""The page tables of admitted sequences: lookup of prefixes, allocation, publication and release."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask.caches.base import CachePlan
from unmask.canvas import Canvas, Ints
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError
from unmask.kv.paged_store import PagedStore, PageTable


def fed_tokens(canvas: Canvas, sees_prompt: bool) -> Ints:
    """Return the network's input tokens `(T,)`; without `sees_prompt` (guidance) fixed ones are masked."""
    if sees_prompt:
        return canvas.tokens
    hidden: Ints = np.where(canvas.fixed, canvas.mask_id, canvas.tokens)
    return hidden


def decided_positions(canvas: Canvas) -> int:
    """Return the number of positions left of the first open one."""
    open_ = canvas.open_positions()
    return int(open_[0]) if len(open_) else len(canvas)


@dataclass
class PrefixStats:
    """Counts of decided positions of admitted sequences, and of those that were in cached pages."""

    num_positions: int = 0
    num_hits: int = 0


class PagedKV:
    """The page tables of sequences with a pageable cache, one per row of the batch."""

    def __init__(self, store: PagedStore) -> None:
        self.store = store
        self.prefix_stats = PrefixStats()
        self._tables: dict[int, list[PageTable]] = {}

    @staticmethod
    def takes(sequence: SequenceState) -> bool:
        """Return whether a sequence's keys are stored in pages."""
        return sequence.request.cache.pageable

    def table(self, sequence: SequenceState, sees_prompt: bool) -> PageTable:
        """Return the table of one row of a sequence."""
        return self._tables[id(sequence)][0 if sees_prompt else 1]

    def admit(self, sequence: SequenceState, num_rows: int) -> None:
        """Create a sequence's tables, with the cached pages of its prefix."""
        request, canvas = sequence.request, sequence.canvas
        decided = decided_positions(canvas)
        tables = self._tables[id(sequence)] = [
            PageTable(self.store, request.adapter) for _ in range(num_rows)
        ]
        num_cached = min(
            table.match_prefix(fed_tokens(canvas, branch == 0)[:decided])
            for branch, table in enumerate(tables)
        )
        for table in tables:
            table.truncate(num_cached)
        self.prefix_stats.num_positions += decided * num_rows
        self.prefix_stats.num_hits += num_cached * num_rows
        # after a preemption, the cached pages may be the sequence's own
        sequence.num_cached = max(sequence.num_cached, sequence.num_never_computed(num_cached))
        sequence.cache_state = request.cache.resume(
            num_cached, request.cache.start(canvas, request.facts)
        )

    def num_missing(self, sequence: SequenceState, plan: CachePlan) -> int:
        """Return the number of pages to allocate before the forward of `plan`."""
        assert plan.end is not None, "plans of a pageable cache have an end"
        return sum(
            table.num_missing(plan.num_stored, plan.end) for table in self._tables[id(sequence)]
        )

    def reserve(self, sequence: SequenceState, plan: CachePlan) -> None:
        """Allocate the pages for the forward of `plan`; they must be available."""
        assert plan.end is not None, "plans of a pageable cache have an end"
        for table in self._tables[id(sequence)]:
            table.reserve(plan.num_stored, plan.end)

    def publish(self, sequence: SequenceState, plan: CachePlan) -> None:
        """Publish the pages that are final after a forward; called before its edit is applied."""
        for branch, table in enumerate(self._tables[id(sequence)]):
            table.publish(fed_tokens(sequence.canvas, branch == 0), plan.num_final)

    def release(self, sequence: SequenceState) -> None:
        """Release all pages of a sequence."""
        for table in self._tables.pop(id(sequence), []):
            table.truncate(0)

    def has_room(self, sequence: SequenceState, num_rows: int) -> bool:
        """Return whether there are pages for a sequence's next forward and one more for each table."""
        if not self._tables:
            return True
        block = self.store.block_size
        pages = num_rows * -(-(decided_positions(sequence.canvas) + block) // self.store.size)
        growing = sum(len(tables) for tables in self._tables.values())
        return pages + growing <= self.store.pool.num_available

    def check_fit(self, sequence: SequenceState, num_rows: int) -> None:
        """Raise ConfigError for a sequence that needs more pages than there are."""
        positions = sequence.request.max_positions
        needed, total = num_rows * -(-positions // self.store.size), self.store.pool.total
        if needed > total:
            raise ConfigError(
                f"a canvas of {positions} positions takes {needed} pages of cache, but the engine has "
                f"{total}; use cache=none, a shorter answer, or more kv_cache_memory_bytes"
            )
