"""The contract between a cache policy and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from unmask.canvas import NO_POSITIONS, Ask, Canvas, Floats, Ints, ModelFacts, Reading, edited

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Layers:
    """What the layers after the first compute, of a plan that keeps their outputs (dLLM-Cache).

    Prompt and response are wholly computed when they are due; else of the response the `num_moved`
    positions whose values moved most, and `forced` ones (ascending) of either.
    """

    prompt_length: int
    prompt: bool
    response: bool
    num_moved: int
    forced: Ints = field(default_factory=lambda: NO_POSITIONS)

    def num_rows(self, length: int) -> int:
        """Positions that a layer computes, of a canvas of `length` positions."""
        inside = int((self.forced < self.prompt_length).sum())
        prompt = self.prompt_length if self.prompt else inside
        size = length - self.prompt_length
        moved = min(size, self.num_moved + len(self.forced) - inside)
        return prompt + (size if self.response else moved)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Which positions the next forward computes (ascending).

    `watched`: tell each position's importance afterwards. `layers`: the layers after the first compute
    less. Of a cache that may be paged: `known` positions from the left have their final keys already,
    `final` have them after the forward; `end`: no query sees the positions from there on.
    """

    queries: Ints
    watched: bool = False
    layers: Layers | None = None
    known: int = 0
    final: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a forward told: the decoder's reading; the importance of each position if the plan watched.

    `importance` sums to the number of positions (see `_rollout`).
    """

    reading: Reading
    importance: Floats | None = None


class CachePolicy(Protocol[State]):
    """The seam: pure functions of one sequence."""

    stores: ClassVar[bool]
    """Whether keys and values are kept between forwards."""
    exact: ClassVar[bool]
    """Whether decoding with it equals decoding without."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """The state before the first forward. Raises ConfigError where the cache cannot be used."""
        ...

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: State) -> tuple[CachePlan, State]:
        """What to compute; `rows[i]` is the position whose logit row answers `ask.rows[i]`.

        Rows of needed positions, of decided ones and of positions outside the window must be among the
        queries, and at least one of the others; what is not, the decoder does not see.
        """
        ...

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: State
    ) -> State:
        """React to a forward and the edit that it led to (the canvas before and after it)."""
        ...


@dataclass(frozen=True, slots=True)
class CacheProgress:
    """Where a sequence stands: end of the running block, forwards in all and since a full one.

    `stale` positions were edited since they were computed.
    """

    window_end: int | None = None
    num_forwards: int = 0
    num_since: int = 0
    stale: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class PerBlock:
    """A cache that computes everything when the running block moves, and `queries` in between.

    Positions that an edit changed or brought are computed in the next forward, wherever they are.
    """

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Positions to compute inside a block, in any order."""
        raise AssertionError(f"{type(self).__name__} defines no queries")

    def is_due(self, ask: Ask, state: CacheProgress) -> bool:
        """Whether everything is computed now."""
        return state.window_end != ask.window[1]

    def start(self, canvas: Canvas, facts: ModelFacts) -> CacheProgress:
        """No block yet."""
        return CacheProgress()

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress
    ) -> tuple[CachePlan, CacheProgress]:
        """Everything, or the cache's choice with the asked rows and the stale positions."""
        due = self.is_due(ask, state)
        after = CacheProgress(
            ask.window[1], state.num_forwards + 1, 1 if due else state.num_since + 1, NO_POSITIONS
        )
        if due:
            return CachePlan(np.arange(len(canvas))), after
        chosen = np.zeros(len(canvas), dtype=np.bool_)
        for positions in (self.queries(canvas, ask, rows, state), rows, state.stale):
            chosen[positions] = True
        return CachePlan(np.flatnonzero(chosen)), after

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: CacheProgress
    ) -> CacheProgress:
        """Note what changed."""
        return replace(state, stale=np.flatnonzero(edited(before, after)))
