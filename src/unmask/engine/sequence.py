"""A request while it is decoded: its canvas, states and counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from unmask.caches.base import Observation
from unmask.canvas import (
    NO_SCORES,
    Ask,
    Bools,
    Canvas,
    DraftMeter,
    Edit,
    Floats,
    Ints,
    apply_checked,
    truncate,
)
from unmask.engine.constrained import check_possible
from unmask.engine.outputs import Alternatives, FinishReason, Step, alternatives_of, step_of
from unmask.engine.request import Request, checked_count
from unmask.errors import DecoderError

if TYPE_CHECKING:
    from unmask.engine.sampler_state import SamplerState


@dataclass
class SequenceState:
    """The state of a request while it is decoded; only the scheduler changes it."""

    request: Request
    canvas: Canvas
    decoder_state: object
    cache_state: object
    sampler_state: SamplerState
    index: int = 0
    drafting: DraftMeter | None = None
    """A smaller model's work for this sequence; None without one."""
    num_forwards: int = 0
    num_queries: int = 0
    num_answer: int = 0
    num_logit_rows: int = 0
    num_forced: int = 0
    num_ahead: int = 0
    """The part of `num_forwards` whose readings came with an earlier forward of the network."""
    num_cached: int = 0
    num_preempted: int = 0
    cache_bytes: int = 0
    ask: Ask | None = None
    """The decoder's ask of the next forward; None before it is requested."""
    changes: list[tuple[Edit, int, Mapping[int, Alternatives] | None]] = field(default_factory=list)
    """Of each forward: the edit, the number of computed positions, and the kept alternatives."""
    finish_reason: FinishReason | None = None
    computed: Floats = field(default_factory=lambda: NO_SCORES)
    """The number of times that each position was computed, by its identity."""
    end: int | None = None
    """The first decided stop token that cannot change any more, if it is to end the answer."""
    limit: int | None = None
    """Positions from here on are padding that no forward needs to compute (`drop_after_eos`)."""
    num_rows: int = field(init=False)
    """The number of rows of a forward that the sequence takes; two if it is guided."""
    has_stop: bool = field(init=False, default=True)
    """False if the answer has no decided stop token for certain."""
    max_forwards: int = field(init=False)
    """That of the request, which takes a call of the decoder."""

    def __post_init__(self) -> None:
        """Compute the maximum number of forwards once."""
        self.max_forwards = self.request.max_forwards
        self.num_rows = 2 if self.request.sampling_params.cfg_scale > 0 else 1

    @classmethod
    def begin(cls, request: Request, index: int = 0) -> SequenceState:
        """Build a sequence before its first forward. Raises ConfigError for knobs that do not suit it."""
        from unmask.engine.sampler_state import SamplerState

        _ = request.max_forwards, request.max_positions  # their rules, before anything is computed
        canvas = request.decoder.first_canvas(request.canvas, request.facts)
        if not isinstance(canvas, Canvas):
            rule = f"first_canvas returned {type(canvas).__name__}; it returns a Canvas"
            raise DecoderError(rule, request.decoder.name, 0)
        facts, drafting = request.facts, None
        if facts.draft is not None:
            drafting = DraftMeter(facts.draft)
            facts = replace(facts, draft=drafting)
        state = request.decoder.start(request.canvas, facts)
        cached = request.cache.start(canvas, request.facts)
        sequence = cls(request, canvas, state, cached, SamplerState(), index, drafting)
        sequence.end = sequence._ending()
        check_possible(request, canvas)
        return sequence

    def advance(self, edit: Edit, num_queries: int, observation: Observation) -> None:
        """Apply a step's edit, record it, update the cache's state, and check for the end."""
        before = self.canvas
        self.canvas = apply_checked(before, edit, self.num_forwards)
        if len(self.canvas) > len(before) and len(self.canvas) > self.request.max_positions:
            raise DecoderError(
                f"the canvas grew to {len(self.canvas)} positions, max_positions returned "
                f"{self.request.max_positions}",
                self.request.decoder.name,
                self.num_forwards,
            )
        if not self.has_stop:
            self.has_stop = self._writes_stop(edit)
        self.end = self._ending()
        if self.request.sampling_params.drop_after_eos and self.end is not None:
            edit = self._drop(edit, self.end + 1)
        count = self.request.num_alternatives
        others = alternatives_of(edit, observation.reading, count) if count else None
        self.changes.append((edit, num_queries, others))
        self.num_forwards += 1
        self.ask = None
        self.cache_state = self.request.cache.observe(
            before, self.canvas, observation, self.cache_state
        )
        self._check_end()

    @property
    def trace(self) -> list[Step]:
        """The changes of each forward, as the entries of a trace."""
        return [step_of(*change) for change in self.changes]

    @property
    def all_forwards(self) -> int:
        """The forwards of the network one after another, a smaller model's included."""
        return self.num_forwards - self.num_ahead + self.num_draft_forwards

    @property
    def all_queries(self) -> int:
        """The positions computed, by a smaller model too."""
        return self.num_queries + self.num_draft_queries

    @property
    def num_draft_forwards(self) -> int:
        """The forwards of a smaller model, which are not in `num_forwards`."""
        return 0 if self.drafting is None else self.drafting.num_forwards

    @property
    def num_draft_queries(self) -> int:
        """The positions that a smaller model computed, which are not in `num_queries`."""
        return 0 if self.drafting is None else self.drafting.num_queries

    def stop_position(self) -> int | None:
        """Return the position of the first decided stop token, if no earlier one is open or may change."""
        end = self._first_end()
        return None if end is None or self._is_open_before(end) else end

    def num_useful(self, block_size: int | None) -> int | None:
        """Return the number of leading positions that later forwards have to compute; None for all.

        With `drop_after_eos` they end with the end token. Otherwise nothing at or beyond this number can
        change the answer: its decoder reads nothing there that matters, and in a model with blocks of
        `block_size` no position before it attends to any of it (docs/explanation/end-of-text.md).
        """
        is_shared = self.request.sampling_params.vocabulary == "adaptive"  # sized by all readings
        if self.limit is not None or self.end is None or block_size is None or is_shared:
            return self.limit
        decoder, size, end = self.request.decoder, len(self.canvas), self.end
        count = decoder.num_relevant(self.canvas, self.decoder_state, end)
        allowed = f"{end + 1} to {size}, a number of positions with the end token"
        low, forward = end + 1, self.num_forwards
        count = checked_count(decoder, "num_relevant", count, allowed, low, size, forward)
        return min(-(-count // block_size) * block_size, size)

    def _ending(self) -> int | None:
        """Return the first settled stop token, if one is to end the answer."""
        ends_early = self.request.stop_at_eos and not self.canvas.infilling
        return self._first_end() if ends_early and self.has_stop else None

    def _writes_stop(self, edit: Edit) -> bool:
        """Return whether an edit decides a position of the canvas as a stop token."""
        written = (edit.tokens, edit.replace_tokens, edit.append)
        stop_ids = self.request.stop_ids
        return not all(stop_ids.isdisjoint(ids.tolist()) for ids in written if len(ids))

    def _is_open_before(self, end: int) -> bool:
        """Return whether a position of the answer left of `end` is undecided."""
        return bool(self.canvas.open[self.canvas.prompt_length : end].any())

    def _first_end(self) -> int | None:
        """Return the first decided stop token of the answer that cannot change any more."""
        start = self.canvas.prompt_length
        is_end = _is_among(self.canvas.tokens[start:], self.request.stop_ids)
        ends = np.flatnonzero(is_end & ~self.canvas.open[start:])
        self.has_stop = len(ends) > 0
        if not len(ends):
            return None
        first = start + int(ends[0])
        return first if first < self._num_lasting() else None

    @property
    def num_settled(self) -> int:
        """The number of leading positions, prompt included, that are decided and final."""
        open_ = self.canvas.open_positions()
        first = int(open_[0]) if len(open_) else len(self.canvas)
        return min(first, self._num_lasting())

    def _num_lasting(self) -> int:
        """Return the number of leading positions that the decoder will not change once they are decided.

        That is all, if only given tokens follow.
        """
        decoder, size = self.request.decoder, len(self.canvas)
        count = decoder.num_settled(self.canvas, self.decoder_state)
        allowed = f"0 to {size}, the number of positions"
        count = checked_count(decoder, "num_settled", count, allowed, 0, size, self.num_forwards)
        return size if self.canvas.fixed[count:].all() else count

    def count(self, positions: Ints, num_queries: int) -> None:
        """Count a forward that computed these positions of the canvas with `num_queries` queries."""
        missing = self.canvas.next_uid - len(self.computed)
        if missing > 0:
            self.computed = np.concatenate((self.computed, np.zeros(missing)))
        self.num_queries += num_queries
        if len(positions):
            self.computed[self.canvas.uid[positions]] += num_queries / len(positions)

    def num_never_computed(self, num_positions: int) -> int:
        """Return how many of the first positions no forward has computed for this sequence."""
        uids = self.canvas.uid[:num_positions]
        own = uids[uids < len(self.computed)]
        return num_positions - int((self.computed[own] > 0).sum())

    @property
    def num_wasted(self) -> int:
        """The part of `num_queries` spent right of the end token; 0 without an end token."""
        canvas = self.canvas
        end = None if canvas.infilling else self.stop_position()
        if end is None:
            return 0
        right = canvas.uid[end + 1 :]
        counted = right[right < len(self.computed)]  # without positions of the last edit
        return round(float(self.computed[counted].sum()))

    def _check_end(self) -> None:
        exhausted = self.num_forwards >= self.max_forwards
        if self.end is not None and not self._is_open_before(self.end):
            self.finish_reason = "stop"
            self._pad(0)
            if self.request.decoder.whole_blocks:
                self.canvas = truncate(self.canvas, len(self.request.canvas))
        elif self.canvas.num_open == 0 and (exhausted or self._num_lasting() >= len(self.canvas)):
            self.finish_reason = "stop" if self.stop_position() is not None else "length"

    def _drop(self, edit: Edit, limit: int) -> Edit:
        """Drop the positions from `limit` on; note in the edit how many of them were open."""
        self.limit = limit
        num_dropped = len(self.canvas.open_positions(limit))
        self._pad(limit)
        return replace(edit, notes={**edit.notes, "dropped": float(num_dropped)})

    def _pad(self, start: int) -> None:
        """Decide the open positions from `start` on as end tokens."""
        facts = self.request.facts
        end = facts.turn_end_id if facts.eos_id is None else facts.eos_id
        end = min(self.request.stop_ids) if end is None else end
        padded = self.canvas.open & (np.arange(len(self.canvas)) >= start)
        self.canvas = replace(
            self.canvas,
            tokens=np.where(padded, end, self.canvas.tokens),
            open=self.canvas.open & ~padded,
            origin=np.where(padded, -2, self.canvas.origin),
        )


def _is_among(tokens: Ints, ids: frozenset[int]) -> Bools:
    """Return a flag per token: True if it is one of some ids, usually two or three."""
    found: Bools = np.zeros(len(tokens), dtype=np.bool_)
    for id_ in ids:
        found |= tokens == id_
    return found
