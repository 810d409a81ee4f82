"""Key/value caches. One policy, one file; the file's name is the cache's name.

A policy only says which slots to compute again. The others' keys and values come from the store, which
belongs to the runner. Like decoders, policies are frozen dataclasses of knobs that hold no progress; state
is passed on, one per sequence. To add one: write the file, define `CACHE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from unmask.caches._slots import edited
from unmask.canvas import NO_SLOTS, Ask, Canvas, Floats, Ints, ModelFacts, Reading
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, knob, read_value, set_field, split_call

__all__ = [
    "Cache",
    "Layers",
    "PerBlock",
    "Plan",
    "Seen",
    "cache_class",
    "describe",
    "knob",
    "make_cache",
    "names",
]

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Layers:
    """What the layers after the first compute, of a plan that keeps their outputs (dLLM-Cache).

    Prompt and response are wholly computed when they are due; else of the response the `num_moved` slots
    whose values moved most, and `forced` ones (ascending) of either.
    """

    prompt_length: int
    prompt: bool
    response: bool
    num_moved: int
    forced: Ints = field(default_factory=lambda: NO_SLOTS)

    def num_rows(self, length: int) -> int:
        """Slots that a layer computes, of a canvas of `length` slots."""
        inside = int((self.forced < self.prompt_length).sum())
        prompt = self.prompt_length if self.prompt else inside
        size = length - self.prompt_length
        moved = min(size, self.num_moved + len(self.forced) - inside)
        return prompt + (size if self.response else moved)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which slots the next forward computes (ascending).

    `watched`: tell each slot's importance afterwards. `layers`: the layers after the first compute less.
    Of a cache that may be paged: `known` slots from the left have their final keys already, `final` have
    them after the forward; `end`: no query sees the slots from there on.
    """

    queries: Ints
    watched: bool = False
    layers: Layers | None = None
    known: int = 0
    final: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a forward told: the decoder's reading; the importance of each slot if the plan watched.

    `importance` sums to the number of slots (see `_rollout`).
    """

    reading: Reading
    importance: Floats | None = None


class Cache(Protocol[State]):
    """The seam: pure functions of one sequence."""

    stores: ClassVar[bool]
    """Whether keys and values are kept between forwards."""
    exact: ClassVar[bool]
    """Whether decoding with it equals decoding without."""

    def start(self, canvas: Canvas, facts: ModelFacts) -> State:
        """The state before the first forward. Raises ConfigError where the cache cannot be used."""
        ...

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: State) -> tuple[Plan, State]:
        """What to compute; `rows[i]` is the slot whose logit row answers `ask.rows[i]`.

        Rows of needed slots, of decided ones and of slots outside the window must be among the queries, and
        at least one of the others; what is not, the decoder does not see.
        """
        ...

    def observe(self, before: Canvas, after: Canvas, seen: Seen, state: State) -> State:
        """React to a forward and the edit that it led to (the canvas before and after it)."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a sequence stands: end of the running block, forwards in all and since a full one.

    `stale` slots were edited since they were computed.
    """

    window_end: int | None = None
    num_forwards: int = 0
    num_since: int = 0
    stale: Ints = field(default_factory=lambda: NO_SLOTS)


@dataclass(frozen=True)
class PerBlock:
    """A cache that computes everything when the running block moves, and `queries` in between.

    Slots that an edit changed or brought are computed in the next forward, wherever they are.
    """

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints, state: Progress) -> Ints:
        """Slots to compute inside a block, in any order."""
        raise AssertionError(f"{type(self).__name__} defines no queries")

    def is_due(self, ask: Ask, state: Progress) -> bool:
        """Whether everything is computed now."""
        return state.window_end != ask.window[1]

    def start(self, canvas: Canvas, facts: ModelFacts) -> Progress:
        """No block yet."""
        return Progress()

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: Progress) -> tuple[Plan, Progress]:
        """Everything, or the cache's choice with the asked rows and the stale slots."""
        due = self.is_due(ask, state)
        after = Progress(
            ask.window[1], state.num_forwards + 1, 1 if due else state.num_since + 1, NO_SLOTS
        )
        if due:
            return Plan(np.arange(len(canvas))), after
        chosen = np.zeros(len(canvas), dtype=np.bool_)
        for slots in (self.queries(canvas, ask, rows, state), rows, state.stale):
            chosen[slots] = True
        return Plan(np.flatnonzero(chosen)), after

    def observe(self, before: Canvas, after: Canvas, seen: Seen, state: Progress) -> Progress:
        """Note what changed."""
        return replace(state, stale=np.flatnonzero(edited(before, after)))


def names() -> list[str]:
    """Every cache's name."""
    hidden = ("_", "store")
    return sorted(item.name for item in iter_modules(__path__) if not item.name.startswith(hidden))


@cache
def cache_class(name: str) -> Any:
    """The dataclass of a cache. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("cache", str(name), names())
    return import_module(f"{__name__}.{name}").CACHE


def make_cache(
    name: str,
    args: Mapping[str, Any] | None = None,
    block_size: int | None = None,
    compat: Any = None,
) -> Any:
    """A cache policy by name with its knobs, e.g. `dllm(kp=50, kr=7)` or `dllm` and `args`.

    `block_size` is the model's (see `ModelFacts`): `auto` chooses by it. `compat`, if not None, holds for a
    policy that has such a knob and is not told otherwise. Raises ConfigError for an unknown
    name or knob, and for values that are not allowed.
    """
    name, inside = split_call(name) if isinstance(name, str) else (name, {})
    given = dict(args or {})
    for key, value in inside.items():
        if key in given and str(given[key]) != str(value):
            raise ConfigError(f"{key}={value} and {key}={given[key]} contradict; give one of them")
    cls = cache_class(name)
    given = {**inside, **given}
    own = field_names(cls)
    if compat is not None and "compat" in own:
        given.setdefault("compat", compat)
    if "inner" in own:
        inner = read_value(given.get("inner"))
        theirs = {key: value for key, value in given.items() if key not in own}
        if inner is None and theirs:
            raise unknown_name(f"knob for cache {name!r}:", next(iter(theirs)), own)
        made = None if inner is None else make_cache(str(inner), theirs, block_size, compat)
        mine = {key: set_field(cls, key, given[key]) for key in given if key in own - {"inner"}}
        return cls(inner=made, **mine)
    for key in given:
        if key not in own:
            raise unknown_name(f"knob for cache {name!r}:", key, own)
    policy = cls(**{key: set_field(cls, key, value) for key, value in given.items()})
    stands_for = getattr(policy, "stands_for", None)
    return policy if stands_for is None else stands_for(block_size)


def cache_name(cache: Any) -> str:
    """The name of a policy."""
    return str(type(cache).__module__.rpartition(".")[2])


def describe(cache: Any) -> str:
    """A policy as `name(knob=value, ...)`, knobs at their defaults left out."""
    shown = []
    for item in dataclasses.fields(cache):
        value = getattr(cache, item.name)
        if item.name == "inner":
            shown += [] if value is None else [f"inner={describe(value)}"]
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = cache_name(cache)
    return f"{name}({', '.join(shown)})" if shown else name
