"""What is asked for, how it stands, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from unmask.canvas import (
    NO_SCORES,
    Ask,
    Canvas,
    Edit,
    Floats,
    Ints,
    ModelFacts,
    apply,
    truncate,
)
from unmask.proposal import Proposal

if TYPE_CHECKING:
    from unmask.caches import Seen
    from unmask.engine.memory import Memory

FinishReason = Literal["stop", "length"]


class Commit(NamedTuple):
    """One decided slot: its index in the canvas at that time, its token, its confidence in [0, 1]."""

    position: int
    token: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward changed.

    `committed` in slot order; `replaced` likewise (decided before); `remasked` slots; `inserted`
    `(slot, count)` pairs; `deleted` slots; `appended` tokens; `num_queries` slots computed by the forward;
    `notes`: numbers the method chose for it (a controller's block length, threshold...).
    """

    committed: tuple[Commit, ...]
    remasked: tuple[int, ...] = ()
    inserted: tuple[tuple[int, int], ...] = ()
    replaced: tuple[Commit, ...] = ()
    deleted: tuple[int, ...] = ()
    num_queries: int = 0
    appended: tuple[int, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)


def step_of(edit: Edit, num_queries: int) -> Step:
    """The trace entry of an edit."""
    commits = zip(edit.commit.tolist(), edit.tokens.tolist(), edit.confidence.tolist(), strict=True)
    replaced = zip(edit.replace.tolist(), edit.replace_tokens.tolist(), strict=True)
    return Step(
        committed=tuple(Commit(*item) for item in commits),
        remasked=tuple(edit.remask.tolist()),
        inserted=edit.insert,
        replaced=tuple(Commit(slot, token, 0.0) for slot, token in replaced),
        deleted=tuple(edit.delete.tolist()),
        num_queries=num_queries,
        appended=tuple(edit.append.tolist()),
        notes=dict(edit.notes),
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode; `stop_ids` end the answer when `stop_at_eos`."""

    canvas: Canvas
    decoder: Any
    cache: Any
    proposal: Proposal
    seed: int
    stop_ids: frozenset[int]
    stop_at_eos: bool
    facts: ModelFacts

    @property
    def max_slots(self) -> int:
        """The most slots the canvas may grow to."""
        return int(self.decoder.max_slots(self.canvas, self.facts))

    @property
    def max_forwards(self) -> int:
        """The loop's bound: past it every forward commits all it reads."""
        usual = 2 * (self.max_slots - self.canvas.prompt_length) + 64
        own = getattr(self.decoder, "max_forwards", None)
        return usual if own is None else max(usual, int(own(self.canvas, self.facts)))


@dataclass
class Sequence:
    """A request on its way; only the loop changes it."""

    request: Request
    canvas: Canvas
    decoder_state: Any
    cache_state: Any
    memory: Memory
    index: int = 0
    num_forwards: int = 0
    num_queries: int = 0
    num_logit_rows: int = 0
    num_forced: int = 0
    num_cached: int = 0
    num_preempted: int = 0
    cache_bytes: int = 0
    ask: Ask | None = None
    """What the decoder asked of the next forward, until that is made."""
    trace: list[Step] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    computed: Floats = field(default_factory=lambda: NO_SCORES)
    """How often each slot was computed, by its identity."""
    limit: int | None = None
    """Slots from there on are dropped: padding that no forward needs to compute."""

    @classmethod
    def begin(cls, request: Request, index: int = 0) -> Sequence:
        """A sequence before its first forward. Raises ConfigError when the decoder's knobs misfit."""
        from unmask.engine.memory import Memory

        first = getattr(request.decoder, "first_canvas", None)
        canvas = request.canvas if first is None else first(request.canvas, request.facts)
        state = request.decoder.start(request.canvas, request.facts)
        cached = request.cache.start(canvas, request.facts)
        return cls(request, canvas, state, cached, Memory(), index)

    def advance(self, edit: Edit, num_queries: int, seen: Seen) -> None:
        """Apply a step's edit, record it, tell the cache, and see whether this is the end."""
        before = self.canvas
        self.canvas = apply(before, edit, self.num_forwards)
        if self.request.proposal.drop_after_eos:
            edit = self._drop(edit)
        self.trace.append(step_of(edit, num_queries))
        self.num_forwards += 1
        self.ask = None
        self.cache_state = self.request.cache.observe(before, self.canvas, seen, self.cache_state)
        self._check_end()

    def stop_slot(self) -> int | None:
        """The first decided stop token of the answer, if nothing left of it is open or may change."""
        end, start = self._first_end(), self.canvas.prompt_length
        return None if end is None or len(self.canvas.open_slots(start, end)) else end

    def _first_end(self) -> int | None:
        """The first decided stop token of the answer that will not change any more."""
        start, end = self.canvas.prompt_length, self._num_lasting()
        ids = np.fromiter(self.request.stop_ids, dtype=np.int64)
        decided = ~self.canvas.open[start:end]
        found = np.flatnonzero(decided & np.isin(self.canvas.tokens[start:end], ids))
        return start + int(found[0]) if len(found) else None

    @property
    def num_settled(self) -> int:
        """Slots from the left, prompt included, that are decided and will not change any more."""
        open_ = self.canvas.open_slots()
        first = int(open_[0]) if len(open_) else len(self.canvas)
        return min(first, self._num_lasting())

    def _num_lasting(self) -> int:
        """Slots from the left that the decoder will not change any more once they are decided."""
        settled = getattr(self.request.decoder, "num_settled", None)
        return len(self.canvas) if settled is None else settled(self.canvas, self.decoder_state)

    def count(self, slots: Ints, num_queries: int) -> None:
        """Remember that a forward computed these slots of the canvas, at the price of `num_queries`."""
        missing = self.canvas.next_uid - len(self.computed)
        if missing > 0:
            self.computed = np.concatenate((self.computed, np.zeros(missing)))
        self.num_queries += num_queries
        if len(slots):
            self.computed[self.canvas.uid[slots]] += num_queries / len(slots)

    def num_never_computed(self, num_slots: int) -> int:
        """Those of the first slots that no forward has computed for this sequence."""
        uids = self.canvas.uid[:num_slots]
        own = uids[uids < len(self.computed)]
        return num_slots - int((self.computed[own] > 0).sum())

    @property
    def num_wasted(self) -> int:
        """Slots computed right of the end token, of `num_queries`; 0 without one."""
        canvas = self.canvas
        end = None if canvas.infilling else self.stop_slot()
        if end is None:
            return 0
        right = canvas.uid[end + 1 :]
        known = right[right < len(self.computed)]  # the last edit's own slots were never computed
        return round(float(self.computed[known].sum()))

    def _check_end(self) -> None:
        ends_early = self.request.stop_at_eos and not self.canvas.infilling
        exhausted = self.num_forwards >= self.request.max_forwards
        if ends_early and self.stop_slot() is not None:
            self.finish_reason = "stop"
            self._pad(0)
            if getattr(self.request.decoder, "whole_blocks", False):
                self.canvas = truncate(self.canvas, len(self.request.canvas))
        elif self.canvas.num_open == 0 and (exhausted or self._num_lasting() >= len(self.canvas)):
            self.finish_reason = "stop" if self.stop_slot() is not None else "length"

    def _drop(self, edit: Edit) -> Edit:
        """Give up the slots right of an end token; the edit, which notes how many of them were open."""
        end = self._first_end()
        self.limit = None if end is None else end + 1
        if self.limit is None:
            return edit
        num_dropped = len(self.canvas.open_slots(self.limit))
        self._pad(self.limit)
        return replace(edit, notes={**edit.notes, "dropped": float(num_dropped)})

    def _pad(self, start: int) -> None:
        """Decide the open slots from `start` on as end tokens."""
        facts = self.request.facts
        end = facts.turn_end_id if facts.eos_id is None else facts.eos_id
        assert end is not None, "stopped without an end token"
        padded = self.canvas.open & (np.arange(len(self.canvas)) >= start)
        tokens = np.where(padded, end, self.canvas.tokens)
        self.canvas = replace(self.canvas, tokens=tokens, open=self.canvas.open & ~padded)


@dataclass(frozen=True, slots=True)
class Output:
    """A decoded request.

    `text` and `token_ids`: the generated part up to (without) the first end-of-text or end-of-turn token;
    for an infill, `text` is the whole filled text and `token_ids` the filled tokens. `canvas_ids`:
    prompt and the whole generated part. `num_forwards` of the network (a guided one counts once),
    `num_queries` slots computed in all of them, `num_logit_rows` rows of the LM head.
    `finish_reason`: "stop" (an end token) or "length" (the canvas is full). `trace[k]`: what forward k
    changed, only with return_trace. `blanks`: the filled texts of an infill. `cache`: the policy
    and its knobs, as `auto` chose it; `cache_exact`: whether it equals decoding without one; `cache_bytes`:
    what its tensors held for this sequence at most. `method`: the decoder and its knobs, as resolved.
    `num_forced`: forwards in which the loop's guard decided instead of the decoder, which changed nothing
    or went on for too long. `num_wasted`: those of `num_queries` that lay right of the end token.
    `num_cached`: slots whose keys were there from another request (an engine's prefix cache).
    """

    text: str
    token_ids: list[int]
    canvas_ids: list[int]
    prompt_length: int
    num_forwards: int
    num_queries: int
    num_logit_rows: int
    finish_reason: FinishReason
    cache_exact: bool
    cache: str = "none"
    cache_bytes: int = 0
    trace: tuple[Step, ...] | None = None
    blanks: tuple[str, ...] = ()
    method: str = ""
    num_forced: int = 0
    num_wasted: int = 0
    num_cached: int = 0
