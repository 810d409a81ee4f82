"""The contract between a cache policy and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np

from unmask.canvas import (
    NO_POSITIONS,
    Ask,
    Canvas,
    Floats,
    Ints,
    ModelFacts,
    Reading,
    edited,
    positions_fault,
)

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Layers:
    """Positions that the layers after the first compute, for a plan that stores their outputs (dLLM-Cache).

    Prompt and response are wholly computed when they are due; else of the response the `num_moved`
    positions whose values moved most, and `forced` ones (ascending) of either.
    """

    prompt_length: int
    prompt: bool
    response: bool
    num_moved: int
    forced: Ints = field(default_factory=lambda: NO_POSITIONS)

    def num_rows(self, length: int) -> int:
        """Return the number of positions that a layer computes, of a canvas of `length` positions."""
        inside = int((self.forced < self.prompt_length).sum())
        prompt = self.prompt_length if self.prompt else inside
        size = length - self.prompt_length
        moved = min(size, self.num_moved + len(self.forced) - inside)
        return prompt + (size if self.response else moved)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Positions that the next forward computes (ascending).

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
    """Results of a forward: the decoder's reading, and each position's importance if the plan is `watched`.

    `importance` sums to the number of positions (see `_rollout`).
    """

    reading: Reading
    importance: Floats | None = None


@dataclass(frozen=True)
class CachePolicy(ABC, Generic[State]):
    """A cache policy: the positions that each forward computes; pure functions of one sequence.

    An instance holds knobs only and is shared by all requests; what changes lives in the `State`. A policy
    must define `start`, `plan` and `observe`. The engine checks every plan and raises `CacheError` for one
    that breaks a rule; only the sequence at fault ends.
    """

    stores: ClassVar[bool] = True
    """Whether keys and values are stored between forwards."""
    exact: ClassVar[bool] = False
    """Whether decoding with the policy equals decoding without a cache."""
    pageable: ClassVar[bool] = False
    """Whether keys are final once their block is and depend on the positions to their left alone, so that
    they may lie in pages that requests share. Such a policy defines `resume` and sets `known`, `final` and
    `end` of its plans."""

    @abstractmethod
    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """Return the state before the first forward. Raises ConfigError where the policy cannot be used."""

    @abstractmethod
    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: State) -> tuple[CachePlan, State]:
        """Return the positions to compute; `rows[i]` is the position whose logits answer `ask.rows[i]`.

        The queries must contain the rows of needed positions, of decided ones and of those outside the
        window, and at least one row in any case; the decoder does not see positions whose rows are missing.
        An exact policy must compute all rows.
        """

    @abstractmethod
    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: State
    ) -> State:
        """Return the state after a forward and the edit that it led to (the canvas before and after it)."""

    @property
    def name(self) -> str:
        """The policy's name: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def layered(self) -> bool:
        """True if plans have `layers`: the layers' outputs are stored beside keys and values."""
        return False

    def stands_for(self, block_size: int | None) -> str | None:
        """Return the name of the policy that this one is another name for; None (the default): itself.

        `block_size` is the model's (see `ModelFacts`).
        """
        return None

    def resume(self, num_positions: int, state: State) -> State:
        """Return the state when the keys of the first `num_positions` are in the store already.

        Called for a pageable policy after `start`, whoever computed them.
        """
        return state

    def prefill(
        self, canvas: Canvas, state: State, max_positions: int
    ) -> tuple[CachePlan, State] | None:
        """Return a plan that computes about `max_positions` decided positions ahead of their use.

        Nothing is read from such a forward: a long prompt is computed in parts. Called for a pageable
        policy whose plan exceeds the limit of a forward. Default: None, the plan runs as it is.
        """
        return None


AnyCache: TypeAlias = CachePolicy[Any]
"""A policy whatever its state, as the engine holds it."""


def plan_fault(policy: AnyCache, canvas: Canvas, ask: Ask, rows: Ints, plan: object) -> str | None:
    """Return the first rule of `CachePolicy.plan` that a plan breaks, or None."""
    if not isinstance(plan, CachePlan):
        return f"plan returned {type(plan).__name__}; it returns a CachePlan and the state"
    size, queries = len(canvas), plan.queries
    fault = positions_fault("CachePlan.queries", queries, size)
    if fault is not None:
        return fault
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[queries] = True
    missing = rows[~chosen[rows]]
    if len(missing) and policy.exact:
        return (
            f"an exact plan must compute the rows of all asked positions; {missing[0]} is missing"
        )
    if len(missing):
        required = ~canvas.open[ask.rows] | (ask.rows < ask.window[0])
        required |= (ask.rows >= ask.window[1]) | np.isin(ask.rows, ask.needed)
        lost = rows[required & ~chosen[rows]]
        if len(lost):
            return (
                f"row {lost[0]} is missing from CachePlan.queries; it answers a position that is needed, "
                f"decided or outside the window"
            )
        if len(missing) == len(rows):
            return "CachePlan.queries has none of the rows that answer the asked positions"
    if not policy.stores and len(queries) < size:
        return f"a policy that stores nothing must compute all {size} positions, not {len(queries)}"
    return _range_fault(policy, canvas, plan) or _layers_fault(policy, canvas, plan)


def _range_fault(policy: AnyCache, canvas: Canvas, plan: CachePlan) -> str | None:
    end = len(canvas) if plan.end is None else plan.end
    if not 0 <= plan.known <= plan.final <= end <= len(canvas):
        return (
            f"CachePlan has known={plan.known}, final={plan.final}, end={plan.end}; use "
            f"0 <= known <= final <= end <= {len(canvas)}"
        )
    if len(plan.queries) and plan.queries[-1] >= end:
        return f"CachePlan.queries has position {plan.queries[-1]}, at or beyond end={end}"
    if not policy.pageable:
        return None
    if plan.end is None:
        return "CachePlan.end is None; a pageable policy sets it"
    if int((plan.queries >= plan.known).sum()) != end - plan.known:
        return f"CachePlan.queries must have all positions from known={plan.known} to end={end}"
    return None


def _layers_fault(policy: AnyCache, canvas: Canvas, plan: CachePlan) -> str | None:
    layers = plan.layers
    if layers is None or not policy.layered:
        if (layers is not None) == policy.layered:
            return None
        has = "no layers" if layers is None else "layers"
        return f"CachePlan has {has}, the policy's layered is {policy.layered}; let them agree"
    if len(plan.queries) < len(canvas):
        return f"a plan with layers must compute all {len(canvas)} positions in the first one"
    if layers.prompt_length != canvas.prompt_length or layers.num_moved < 0:
        return (
            f"CachePlan.layers={layers} does not fit a prompt of {canvas.prompt_length} positions"
        )
    return positions_fault("CachePlan.layers.forced", layers.forced, len(canvas))


@dataclass(frozen=True)
class Alias(CachePolicy[None]):
    """A name for other policies, chosen by `stands_for`; it is never used itself."""

    @abstractmethod
    def stands_for(self, block_size: int | None) -> str:
        """Return the name of the policy."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> None:
        """Raise NotImplementedError: the policy that it stands for is used."""
        raise NotImplementedError(f"cache {self.name!r} stands for another one; use make_cache")

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: None) -> tuple[CachePlan, None]:
        """Raise NotImplementedError: the policy that it stands for is used."""
        raise NotImplementedError(f"cache {self.name!r} stands for another one; use make_cache")

    def observe(self, before: Canvas, after: Canvas, observation: Observation, state: None) -> None:
        """Raise NotImplementedError: the policy that it stands for is used."""
        raise NotImplementedError(f"cache {self.name!r} stands for another one; use make_cache")


@dataclass(frozen=True, slots=True)
class CacheProgress:
    """Progress of a sequence: end of the running block, forwards in total and since a full one.

    `stale` positions were edited since they were computed.
    """

    window_end: int | None = None
    num_forwards: int = 0
    num_since: int = 0
    stale: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class PerBlock(CachePolicy[CacheProgress]):
    """A cache that computes everything when the running block moves, and `queries` in between.

    Positions that an edit changed or brought are computed in the next forward, wherever they are.
    """

    @abstractmethod
    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Return the positions to compute inside a block, in any order."""

    def is_due(self, ask: Ask, state: CacheProgress) -> bool:
        """Return True if all positions are computed now."""
        return state.window_end != ask.window[1]

    def start(self, canvas: Canvas, facts: ModelFacts) -> CacheProgress:
        """Return the state before the first block."""
        return CacheProgress()

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress
    ) -> tuple[CachePlan, CacheProgress]:
        """Plan all positions, or the policy's choice plus the asked and the stale positions."""
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
