"""Key/value caches. One policy, one file; the file's name is the cache's name.

A policy only says which slots to compute again. The others' keys and values come from the store, which
belongs to the runner. Like decoders, policies are values that hold no progress; state is passed on, one
per sequence. To add one: write the file, define `CACHE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from unmask.canvas import Ask, Canvas, Ints
from unmask.errors import unknown_name

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Plan:
    """Which slots the next forward computes (ascending); `refresh` says that it is all of them."""

    queries: Ints
    refresh: bool


class Cache(Protocol[State]):
    """The seam: pure functions of one sequence."""

    stores: ClassVar[bool]
    """Whether keys and values are kept between forwards."""
    exact: ClassVar[bool]
    """Whether decoding with it equals decoding without."""

    def start(self) -> State:
        """The state before the first forward."""
        ...

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: State) -> tuple[Plan, State]:
        """What to compute so that the logit rows `rows` (ascending slots) are there."""
        ...

    def observe(self, before: Canvas, after: Canvas, state: State) -> State:
        """React to an edit (the canvas before and after it)."""
        ...


class PerBlock:
    """A cache that computes everything when the running block moves, and `queries` in between."""

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def queries(self, canvas: Canvas, ask: Ask, rows: Ints) -> Ints:
        """Slots to compute inside a block, ascending, `rows` among them."""
        raise AssertionError(f"{type(self).__name__} defines no queries")

    def start(self) -> int | None:
        """No block yet; later the end of the block that was computed in full."""
        return None

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: int | None) -> tuple[Plan, int]:
        """Everything for a new block."""
        end = ask.window[1]
        if state != end:
            return Plan(np.arange(len(canvas)), refresh=True), end
        return Plan(self.queries(canvas, ask, rows), refresh=False), end

    def observe(self, before: Canvas, after: Canvas, state: int | None) -> int | None:
        """Edits lie in what is computed again; when slots move, the next forward is a full one."""
        return state if len(before) == len(after) else None


def names() -> list[str]:
    """Every cache's name."""
    hidden = ("_", "store")
    return sorted(item.name for item in iter_modules(__path__) if not item.name.startswith(hidden))


def make_cache(name: str) -> Any:
    """A cache policy by name. Raises ConfigError for an unknown one."""
    if name not in names():
        raise unknown_name("cache", str(name), names())
    return import_module(f"{__name__}.{name}").CACHE()
