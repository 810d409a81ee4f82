"""Deterministic automata over bytes, from syntax trees: Thompson's construction, then subsets.

Letters: S states, K classes of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.errors import GrammarError
from unmask.grammar.nodes import (
    MAX_CODE_POINT,
    SURROGATES,
    Chars,
    Concat,
    Either,
    Graph,
    Members,
    Node,
    Ranges,
    Repeat,
    Text,
    complement,
    intersect,
)

MAX_NFA_STATES = 100_000
MAX_STATES = 32_000
MAX_WORK = 4_000_000
"""Maximum number of (state, byte class) pairs and set members that the subset construction visits."""

Ints32 = NDArray[np.int32]
UTF8_ENDS = (0x7F, 0x7FF, 0xFFFF, MAX_CODE_POINT)
"""Last code points of the encodings of 1, 2, 3 and 4 bytes."""


@dataclass(frozen=True)
class ByteAutomaton:
    """An automaton over bytes: state 0 is dead, state 1 the start; every other state can reach an end.

    `classes` `(256,)` has the class of each byte, `table` `(S, K)` the next state by state and class,
    `accepting` `(S,)` the states in which a text may end.
    """

    classes: Ints32
    table: Ints32
    accepting: NDArray[np.bool_]

    def accepts(self, data: bytes) -> bool:
        """Return whether a text in UTF-8 belongs to the language."""
        state = 1
        for byte in data:
            state = int(self.table[state, self.classes[byte]])
        return bool(self.accepting[state])


def compile_node(node: Node) -> ByteAutomaton:
    """Return the automaton of a syntax tree.

    Raises GrammarError for one that is too large, and for a language without any text.
    """
    machine = _Machine()
    end = machine.add(node, 0)
    return _Subsets(machine, end).automaton()


class _Machine:
    """A nondeterministic automaton: empty moves, and moves on ranges of bytes, by state."""

    def __init__(self) -> None:
        self.empty: list[list[int]] = [[]]
        self.moves: list[list[tuple[int, int, int]]] = [[]]

    def new(self) -> int:
        if len(self.empty) >= MAX_NFA_STATES:
            raise GrammarError(
                f"the constraint needs more than {MAX_NFA_STATES} states; use fewer or shorter texts, or "
                f"smaller counts of characters, items and repetitions"
            )
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1

    def add(self, node: Node, start: int) -> int:
        """Add a tree that begins in `start`; return the state in which it ends."""
        if isinstance(node, Text):
            for byte in node.data:
                after = self.new()
                self.moves[start].append((byte, byte, after))
                start = after
            return start
        if isinstance(node, Concat):
            for part in node.parts:
                start = self.add(part, start)
            return start
        if isinstance(node, Either):
            end = self.new()
            for option in node.options:
                first = self.new()
                self.empty[start].append(first)
                self.empty[self.add(option, first)].append(end)
            return end
        if isinstance(node, Repeat):
            return self._repeat(node, start)
        if isinstance(node, Members):
            return self._members(node, start)
        if isinstance(node, Graph):
            return self._graph(node, start)
        return self._chars(node, start)

    def _step(self, start: int) -> int:
        """Return a new state after `start`, for loops: nothing else enters `start` then."""
        after = self.new()
        self.empty[start].append(after)
        return after

    def _repeat(self, node: Repeat, start: int) -> int:
        end = self.new()
        if node.low == 0:
            self.empty[start].append(end)
        copies = node.low if node.high is None else node.high
        for number in range(1, copies + 1):
            is_loop = node.high is None and number == node.low
            if number > 1 and node.separator is not None:
                start = self.add(node.separator, start)
            start = self._loop(node, start) if is_loop else self.add(node.item, self._step(start))
            if number >= node.low:
                self.empty[start].append(end)
        if node.high is None and node.low == 0:
            self.empty[self._loop(node, start)].append(end)
        return end

    def _loop(self, node: Repeat, start: int) -> int:
        """Add one item or more."""
        first = self._step(start)
        last = self._step(self.add(node.item, first))
        again = last if node.separator is None else self.add(node.separator, last)
        self.empty[again].append(first)
        return last

    def _members(self, node: Members, start: int) -> int:
        """Add items of which some are optional; a separator stands between those that are there."""
        none, some = self._step(start), self.new()
        for item, is_required in node.items:
            first, after = self.new(), self.new()
            self.empty[none].append(first)
            self.empty[self.add(node.separator, some)].append(first)
            self.empty[self.add(item, first)].append(after)
            fresh = self.new()
            if not is_required:
                self.empty[none].append(fresh)
                self.empty[some].append(after)
            none, some = fresh, after
        end = self.new()
        self.empty[none].append(end)
        self.empty[some].append(end)
        return end

    def _graph(self, node: Graph, start: int) -> int:
        """Add a state for each of the graph, and its edges."""
        numbers = {number for before, _, after in node.edges for number in (before, after)}
        states = {number: self.new() for number in sorted(numbers | {node.start, node.end})}
        self.empty[start].append(states[node.start])
        for before, item, after in node.edges:
            self.empty[self.add(item, self._step(states[before]))].append(states[after])
        return self._step(states[node.end])

    def _chars(self, node: Chars, start: int) -> int:
        end = self.new()
        made: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
        for spans in utf8_spans(node.ranges):
            at = start
            for index, (low, high) in enumerate(spans):
                rest = spans[index + 1 :]
                if not rest:
                    self.moves[at].append((low, high, end))
                    break
                shared = (len(rest), rest)  # equal continuations share their states
                if shared in made:
                    self.moves[at].append((low, high, made[shared]))
                    break
                made[shared] = self.new()
                self.moves[at].append((low, high, made[shared]))
                at = made[shared]
        return end


def utf8_spans(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield sequences of byte ranges that together encode exactly these code points."""
    for low, high in intersect(ranges, complement((SURROGATES,))):
        first = 0
        for last in UTF8_ENDS:
            start, end = max(low, first), min(high, last)
            if start <= end:
                yield from _split(start, end)
            first = last + 1


def _split(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield the byte ranges of code points with encodings of one length."""
    size = len(chr(high).encode())
    for length in range(1, size):
        mask = (1 << (6 * length)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split(low, low | mask)
                yield from _split((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _split(low, (high & ~mask) - 1)
                yield from _split(high & ~mask, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))


class _Subsets:
    """The subset construction of a machine."""

    def __init__(self, machine: _Machine, end: int) -> None:
        self.machine, self.end, self.work = machine, end, 0
        self.closures: dict[int, frozenset[int]] = {}
        bounds = {0, 256}
        for moves in machine.moves:
            for low, high, _ in moves:
                bounds |= {low, high + 1}
        starts = sorted(bounds)
        self.class_of = np.zeros(256, dtype=np.int32)
        for number, (low, high) in enumerate(zip(starts, starts[1:], strict=False)):
            self.class_of[low:high] = number
        self.num_classes = len(starts) - 1

    def closure(self, state: int) -> frozenset[int]:
        """Return the states that empty moves reach, those with moves of their own and the end only."""
        found = self.closures.get(state)
        if found is None:
            seen, stack = {state}, [state]
            while stack:
                for after in self.machine.empty[stack.pop()]:
                    if after not in seen:
                        seen.add(after)
                        stack.append(after)
            self._count(len(seen))
            found = frozenset(each for each in seen if self.machine.moves[each] or each == self.end)
            self.closures[state] = found
        return found

    def _count(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise GrammarError(
                f"the constraint takes more than {MAX_WORK} steps to compile; use fewer alternatives, "
                f"repetitions or properties"
            )

    def automaton(self) -> ByteAutomaton:
        """Return the automaton without states from which no end is reachable."""
        numbers: dict[frozenset[int], int] = {frozenset(): 0, self.closure(0): 1}
        order, rows = [frozenset[int](), self.closure(0)], [np.zeros(self.num_classes, np.int32)]
        while len(rows) < len(order):
            members = order[len(rows)]
            targets: dict[int, set[int]] = {}
            for state in members:
                for low, high, after in self.machine.moves[state]:
                    span = range(int(self.class_of[low]), int(self.class_of[high]) + 1)
                    self._count(len(span))
                    for number in span:
                        targets.setdefault(number, set()).add(after)
            row = np.zeros(self.num_classes, dtype=np.int32)
            unions: dict[frozenset[int], int] = {}
            for number, states in targets.items():
                key = frozenset(states)
                if key not in unions:
                    merged = frozenset[int]().union(*map(self.closure, key))
                    self._count(len(merged))
                    if merged not in numbers:
                        numbers[merged] = len(order)
                        order.append(merged)
                        self._check_size(len(order))
                    unions[key] = numbers[merged]
                row[number] = unions[key]
            rows.append(row)
        accepting = np.array([self.end in members for members in order])
        table = np.stack(rows)
        return _trimmed(self.class_of, *_merged(table, accepting))

    @staticmethod
    def _check_size(size: int) -> None:
        if size > MAX_STATES:
            raise GrammarError(
                f"the constraint needs more than {MAX_STATES} states; use fewer or shorter texts, or "
                f"smaller counts of characters, items and repetitions"
            )


def _merged(table: Ints32, accepting: NDArray[np.bool_]) -> tuple[Ints32, NDArray[np.bool_]]:
    """Merge states that accept alike and have equal moves, the last states of a text first.

    Of states without a loop behind them, none that accept the same texts are left; the others may have
    twins. State 0 stays dead, and state 1 the start.
    """
    number = np.arange(len(table), dtype=np.int32)
    known: dict[tuple[bool, bytes], int] = {}
    for state in _backwards(table):
        key = bool(accepting[state]), number[table[state]].tobytes()
        number[state] = known.setdefault(key, state)
    if number[1] != 1:  # the start, which is visited last, stands for its twin
        number[number == number[1]] = 1
    keep = np.unique(np.append(number, (0, 1)))
    fresh = np.zeros(len(table), dtype=np.int32)
    fresh[keep] = np.arange(len(keep))
    return fresh[number[table[keep]]], accepting[keep]


def _backwards(table: Ints32) -> Iterator[int]:
    """Yield the states, the dead one first, each after those that it leads to, loops excepted."""
    yield 0
    seen = np.zeros(len(table), dtype=np.bool_)
    seen[:2] = True
    stack = [(1, iter(np.unique(table[1]).tolist()))]
    while stack:
        state, others = stack[-1]
        fresh = next((each for each in others if not seen[each]), None)
        if fresh is None:
            yield state
            stack.pop()
        else:
            seen[fresh] = True
            stack.append((fresh, iter(np.unique(table[fresh]).tolist())))


def _trimmed(classes: Ints32, table: Ints32, accepting: NDArray[np.bool_]) -> ByteAutomaton:
    """Remove the states that reach no end, and merge classes of bytes with equal columns."""
    alive = _coaccessible(table, accepting)
    if not alive[1]:
        raise GrammarError("no text meets the constraint: its parts contradict each other")
    alive[0] = False
    numbers = np.zeros(len(table), dtype=np.int32)
    numbers[alive] = np.arange(1, int(alive.sum()) + 1)
    rows = np.concatenate((np.zeros((1, table.shape[1]), np.int32), numbers[table[alive]]))
    columns, inverse = np.unique(rows, axis=1, return_inverse=True)
    return ByteAutomaton(
        classes=inverse.reshape(-1).astype(np.int32)[classes],
        table=np.ascontiguousarray(columns.astype(np.int32)),
        accepting=np.concatenate(([False], accepting[alive])),
    )


def _coaccessible(table: Ints32, accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the states from which an accepting one is reachable, `(S,)`."""
    before: list[list[int]] = [[] for _ in table]
    for state, row in enumerate(table):
        for after in np.unique(row).tolist():
            before[after].append(state)
    alive: NDArray[np.bool_] = accepting.copy()
    stack = np.flatnonzero(accepting).tolist()
    while stack:
        for state in before[stack.pop()]:
            if not alive[state]:
                alive[state] = True
                stack.append(state)
    return alive
