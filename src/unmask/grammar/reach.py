"""Tokens that may stand at a position, given the decided ones: reachability from both sides.

Source: our own; the idea of two-sided reachability over a block is DINGO's (arXiv:2505.23061), which
decides a whole block by dynamic programming. With F_i the states reachable from the start through the
positions before i (a decided position by its token, an open one by any token) and B_i those from which an
end is reachable through the positions from i on, token t is allowed at position i if and only if some state
q in F_i has delta(q, t) in B_(i+1).

Letters: S states, C token classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unmask.grammar.token_automaton import TokenTable

CACHE_BYTES = 1 << 22
"""Approximate size of each of an automaton's caches of sets of states."""
OPEN = -1
"""The token of an undecided position."""

Bools = NDArray[np.bool_]
Ints32 = NDArray[np.int32]
States = bytes
"""A set of states: one byte per state, 1 for its members."""


class TokenAutomaton:
    """A deterministic automaton over token ids, with cached moves of sets of states. Thread-safe.

    `classes` `(V,)` has the class of each token; those of class 0 are allowed nowhere.
    """

    def __init__(self, moves: TokenTable) -> None:
        self.classes, self._table = moves.classes, moves.table
        num_classes, num_states = moves.table.shape
        self.num_states, self.num_classes = num_states, num_classes
        self._kinds, self._from = (each.astype(np.int32) for each in np.nonzero(moves.table))
        self._to = moves.table[self._kinds, self._from]
        pairs = np.unique(self._from.astype(np.int64) * num_states + self._to)
        self._any_from, self._any_to = pairs // num_states, pairs % num_states
        start = np.zeros(num_states, dtype=np.bool_)
        start[1] = True
        self.start: States = start.tobytes()
        """The states before the first position."""
        self.end: States = moves.accepting.tobytes()
        """The states after the last position."""
        count = min(1 << 13, max(64, CACHE_BYTES // num_states))
        self.after = lru_cache(count)(self._after)
        self.before = lru_cache(count)(self._before)
        self.allowed = lru_cache(min(1 << 13, max(64, CACHE_BYTES // num_classes)))(self._allowed)
        self.meet = lru_cache(count)(self._meet)

    @staticmethod
    def _flags(states: States) -> Bools:
        return np.frombuffer(states, dtype=np.bool_)

    def _after(self, states: States, kind: int) -> States:
        """Return the states after a token of class `kind` (`OPEN`: any token)."""
        found = np.zeros(self.num_states, dtype=np.bool_)
        if kind == OPEN:
            found[self._any_to[self._flags(states)[self._any_from]]] = True
        else:
            found[self._table[kind][self._flags(states)]] = True
            found[0] = False
        return found.tobytes()

    def _before(self, states: States, kind: int) -> States:
        """Return the states from which a token of class `kind` (`OPEN`: any token) leads to `states`."""
        found = np.zeros(self.num_states, dtype=np.bool_)
        if kind == OPEN:
            found[self._any_from[self._flags(states)[self._any_to]]] = True
        else:
            found = self._flags(states)[self._table[kind]]
        return found.tobytes()

    def _allowed(self, before: States, after: States) -> Bools:
        """Return a flag per class, `(C,)`: some state before moves by it to one after."""
        flags = np.zeros(self.num_classes, dtype=np.bool_)
        flags[self._kinds[self._flags(before)[self._from] & self._flags(after)[self._to]]] = True
        return flags

    def _meet(self, first: States, second: States) -> bool:
        return bool((self._flags(first) & self._flags(second)).any())

    def ends(self, num_positions: int) -> States:
        """Return the states from which an end is reachable through so many open positions."""
        states = self.end
        for _ in range(num_positions):
            more = self.before(states, OPEN)
            if more == states:
                break
            states = more
        return states

    def num_needed(self, states: States, most: int) -> int | None:
        """Return the least number of open positions from these states to an end; None if above `most`."""
        for count in range(most + 1):
            if self.meet(states, self.end):
                return count
            states = self.after(states, OPEN)
        return None


class Reach:
    """The reachable states around each position of a run of tokens (`OPEN`: undecided), kept up to date.

    `extra` positions may be appended to the run later, so its end need not be that of the text.
    """

    def __init__(self, automaton: TokenAutomaton, tokens: Sequence[int], extra: int = 0) -> None:
        self.automaton = automaton
        classes = automaton.classes
        self._kinds = [OPEN if token == OPEN else int(classes[token]) for token in tokens]
        self._before = [automaton.start]
        for kind in self._kinds:
            self._before.append(automaton.after(self._before[-1], kind))
        states = [automaton.ends(extra)]
        for kind in reversed(self._kinds):
            states.append(automaton.before(states[-1], kind))
        self._after = states[::-1]

    @property
    def is_possible(self) -> bool:
        """True if the open positions can be decided so that the text belongs to the language."""
        is_met: bool = self.automaton.meet(self.automaton.start, self._after[0])
        return is_met

    @property
    def num_missing(self) -> int | None:
        """The least number of positions that the text needs after this run; None if there is no number."""
        states = self._before[-1]
        return self.automaton.num_needed(states, self.automaton.num_states)

    def allowed(self, position: int) -> Bools:
        """Return a flag per token class, `(C,)`: it may stand at a position, whatever stands there now."""
        flags: Bools = self.automaton.allowed(self._before[position], self._after[position + 1])
        return flags

    def put(self, position: int, token: int) -> bool:
        """Decide a position if the token is allowed there; return whether it is."""
        kind = int(self.automaton.classes[token])
        moved = self.automaton.after(self._before[position], kind)
        if kind == 0 or not self.automaton.meet(moved, self._after[position + 1]):
            return False
        self._kinds[position] = kind
        self._renew(position)
        return True

    def _renew(self, position: int) -> None:
        """Update the states right and left of a changed position, as far as they change."""
        for at in range(position, len(self._kinds)):
            states = self.automaton.after(self._before[at], self._kinds[at])
            if states == self._before[at + 1]:
                break
            self._before[at + 1] = states
        for at in range(position, -1, -1):
            states = self.automaton.before(self._after[at + 1], self._kinds[at])
            if states == self._after[at]:
                break
            self._after[at] = states
