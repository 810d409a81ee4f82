"""The contract between a cache policy and the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np

from unmask.canvas import (
    NO_POSITIONS,
    Ask,
    Bools,
    Canvas,
    Floats,
    Ints,
    ModelFacts,
    Reading,
    edited,
)
from unmask.edit_rules import positions_fault

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Layers:
    """Positions that the layers after the first compute, for a plan that stores their outputs (dLLM-Cache).

    With `prompt` or `response`, that part is computed completely. Otherwise only `forced` positions
    (ascending) are and, of the response, the `num_moved` positions with the most changed values.
    """

    prompt_length: int
    prompt: bool
    response: bool
    num_moved: int
    forced: Ints = field(default_factory=lambda: NO_POSITIONS)

    def num_rows(self, length: int) -> int:
        """Return the number of positions that a layer computes for a canvas of `length` positions."""
        inside = int((self.forced < self.prompt_length).sum())
        prompt = self.prompt_length if self.prompt else inside
        size = length - self.prompt_length
        moved = min(size, self.num_moved + len(self.forced) - inside)
        return prompt + (size if self.response else moved)


@dataclass(frozen=True, slots=True)
class CachePlan:
    """The positions `queries` (ascending) that the next forward computes.

    `needs_importance` requests each position's importance in the observation. With `layers`, the layers
    after the first compute fewer positions. Pageable policies also set: `num_stored`, the number of leading
    positions whose final keys are stored already; `num_final`, their number after the forward; and `end`,
    the first position that no query attends to.
    """

    queries: Ints
    needs_importance: bool = False
    layers: Layers | None = None
    num_stored: int = 0
    num_final: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Results of a forward: the decoder's reading, and the importances if the plan `needs_importance`.

    `importance` has one value per position; they sum to the number of positions (`attention/rollout.py`).
    """

    reading: Reading
    importance: Floats | None = None


@dataclass(frozen=True)
class CachePolicy(ABC, Generic[State]):
    """A cache policy: the choice of the positions that each forward computes.

    Its methods are pure functions of one sequence. An instance has only knobs and is shared by all
    requests; a sequence's progress is in the `State`. A policy must define `start`, `plan` and `observe`.
    The engine checks every plan and raises `CacheError` for one that breaks a rule, which ends that
    sequence alone.
    """

    stores: ClassVar[bool] = True
    """True if keys and values are stored between forwards."""
    exact: ClassVar[bool] = False
    """True if decoding with the policy equals decoding without a cache."""
    pageable: ClassVar[bool] = False
    """True if the keys of a final block are final and depend only on the positions up to its end, so that
    requests can share them in pages. Such a policy defines `resume` and sets `num_stored`, `num_final` and
    `end` of its plans."""

    @abstractmethod
    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """Return the state before the first forward. Raises ConfigError for an unsuitable model."""

    @abstractmethod
    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: State) -> tuple[CachePlan, State]:
        """Return the positions to compute; `rows[i]` is the position whose logits answer `ask.rows[i]`.

        The queries must contain the rows of all asked positions that are needed, decided or outside the
        window, and at least one row. Other rows may be missing: the decoder then does not see these
        positions in this forward. An exact policy must compute all rows.
        """

    @abstractmethod
    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: State
    ) -> State:
        """Return the state after a forward and its edit, which turned the canvas `before` into `after`."""

    @property
    def name(self) -> str:
        """The policy's name: that of its file, or that of `own_code` for a user's."""
        own: str = vars(type(self)).get("reference", "")
        return own or type(self).__module__.rpartition(".")[2]

    @property
    def layered(self) -> bool:
        """True if plans have `layers`; the layers' outputs are then stored beside keys and values."""
        return False

    def defaults(self) -> dict[str, object]:
        """Return the values in force of knobs that are None. Default: none, so that None means off."""
        return {}

    def stands_for(self, block_size: int | None) -> str | None:
        """Return the policy that this one is an alias of, by name; None (the default) for no alias.

        `block_size` is the model's (see `ModelFacts`).
        """
        return None

    def resume(self, num_positions: int, state: State) -> State:
        """Return the state for a sequence whose first `num_positions` positions have stored keys.

        Called for a pageable policy after `start`; another request may have computed the keys.
        """
        return state

    def prefill(
        self, canvas: Canvas, state: State, max_positions: int
    ) -> tuple[CachePlan, State] | None:
        """Return a plan for about `max_positions` decided positions, to compute a long prompt in parts.

        The decoder gets no reading of such a forward. Called for a pageable policy whose plan exceeds the
        limit of a forward. With None, the default, the plan runs as it is.
        """
        return None


AnyCache: TypeAlias = CachePolicy[Any]
"""A policy with any type of state, as the engine uses it."""


def plan_fault(policy: AnyCache, canvas: Canvas, ask: Ask, rows: Ints, plan: object) -> str | None:
    """Return the first rule of `CachePolicy.plan` that a plan breaks, or None."""
    if not isinstance(plan, CachePlan):
        return f"plan returned {type(plan).__name__}; it must return a CachePlan and the state"
    size, queries = len(canvas), plan.queries
    fault = positions_fault("CachePlan.queries", queries, size)
    if fault is not None:
        return fault
    answered = answered_rows(size, queries, rows)
    if np.count_nonzero(answered) < len(rows):
        missing = rows[~answered]
        if policy.exact:
            return f"an exact plan must compute the rows of all asked positions; {missing[0]} is missing"
        required = ~canvas.open[ask.rows] | (ask.rows < ask.window[0])
        required |= (ask.rows >= ask.window[1]) | np.isin(ask.rows, ask.needed)
        lost = rows[required & ~answered]
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


def answered_rows(size: int, queries: Ints, rows: Ints) -> Bools:
    """Return a flag per row: True if it is among the queries, of a canvas of `size`; both ascend."""
    if not len(queries) or not len(rows):
        return np.zeros(len(rows), dtype=np.bool_)
    first, last = queries[0], queries[-1]
    if last - first + 1 == len(queries) and first <= rows[0] and rows[-1] <= last:
        return np.ones(len(rows), dtype=np.bool_)
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[queries] = True
    found: Bools = chosen[rows]
    return found


def _range_fault(policy: AnyCache, canvas: Canvas, plan: CachePlan) -> str | None:
    end = len(canvas) if plan.end is None else plan.end
    if not 0 <= plan.num_stored <= plan.num_final <= end <= len(canvas):
        return (
            f"CachePlan has num_stored={plan.num_stored}, num_final={plan.num_final}, end={plan.end}; use "
            f"0 <= num_stored <= num_final <= end <= {len(canvas)}"
        )
    if len(plan.queries) and plan.queries[-1] >= end:
        return f"CachePlan.queries has position {plan.queries[-1]}, at or beyond end={end}"
    if not policy.pageable:
        return None
    if plan.end is None:
        return "CachePlan.end is None; a pageable policy sets it"
    if int((plan.queries >= plan.num_stored).sum()) != end - plan.num_stored:
        return f"CachePlan.queries must have all positions from num_stored={plan.num_stored} to end={end}"
    return None


def _layers_fault(policy: AnyCache, canvas: Canvas, plan: CachePlan) -> str | None:
    layers = plan.layers
    if layers is None or not policy.layered:
        if (layers is not None) == policy.layered:
            return None
        has = "no layers" if layers is None else "layers"
        return f"CachePlan has {has}, but the policy's layered is {policy.layered}; they must agree"
    if len(plan.queries) < len(canvas):
        return (
            f"CachePlan.queries has {len(plan.queries)} positions; a plan with layers must have all "
            f"{len(canvas)} positions"
        )
    if layers.prompt_length != canvas.prompt_length or layers.num_moved < 0:
        return (
            f"CachePlan.layers={layers} does not fit a prompt of {canvas.prompt_length} positions"
        )
    return positions_fault("CachePlan.layers.forced", layers.forced, len(canvas))


@dataclass(frozen=True)
class Alias(CachePolicy[None]):
    """An alias of other policies, chosen by `stands_for`; `bind` replaces it before it is used."""

    @abstractmethod
    def stands_for(self, block_size: int | None) -> str:
        """Return the name of the policy to use."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> None:
        """Raise NotImplementedError; an alias must be resolved by `bind` first."""
        raise self._unresolved()

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: None) -> tuple[CachePlan, None]:
        """Raise NotImplementedError; an alias must be resolved by `bind` first."""
        raise self._unresolved()

    def observe(self, before: Canvas, after: Canvas, observation: Observation, state: None) -> None:
        """Raise NotImplementedError; an alias must be resolved by `bind` first."""
        raise self._unresolved()

    def _unresolved(self) -> NotImplementedError:
        return NotImplementedError(
            f"cache {self.name!r} is an alias; resolve it with unmask.caches.bind"
        )


@dataclass(frozen=True, slots=True)
class CacheProgress:
    """Progress of a sequence: end of the running block, forwards in total and since the last full one.

    `stale` positions were edited after they were computed.
    """

    window_end: int | None = None
    num_forwards: int = 0
    num_since: int = 0
    stale: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class PerBlock(CachePolicy[CacheProgress]):
    """A cache that computes everything when the running block moves, and `queries` in between.

    Positions that an edit changed or inserted are computed in the next forward, wherever they are.
    """

    @abstractmethod
    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: CacheProgress) -> Ints:
        """Return the positions to compute inside a block, in any order."""

    def is_due(self, ask: Ask, state: CacheProgress) -> bool:
        """Return whether the next forward computes all positions."""
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
        return CachePlan(chosen.nonzero()[0]), after

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: CacheProgress
    ) -> CacheProgress:
        """Record the edited positions."""
        stale = edited(before, after).nonzero()[0]
        return CacheProgress(state.window_end, state.num_forwards, state.num_since, stale)
