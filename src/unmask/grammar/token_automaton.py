"""Automata over token ids: a byte automaton run over the bytes of every token of a vocabulary.

Tokens that move every state alike share a class, which makes some hundreds of classes out of a large
vocabulary.

Letters: S states, C token classes, V vocabulary, N trie nodes of one level, K classes of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import ByteAutomaton

MAX_TABLE = 1 << 26
"""Maximum number of entries of a table of columns: 256 MB, while the automaton is compiled."""
MAX_FINAL_TABLE = 1 << 23
"""Maximum number of entries of the table of a compiled automaton: 32 MB."""
MAX_WORK = 1_500_000_000
"""Maximum number of table entries that a compilation computes: some 5 s."""
CHUNK = 1 << 23
"""Entries computed at a time."""

Ints = NDArray[np.int64]
Ints32 = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TrieLevel:
    """The prefixes of one length: their `parents` in the level before and last `bytes`, `(N,)` each.

    `tokens` end here, at the prefixes `ends`.
    """

    parents: Ints
    bytes: Ints
    tokens: Ints
    ends: Ints


@dataclass(frozen=True)
class TokenTrie:
    """All tokens that contribute bytes to a text, as a trie, for a vocabulary of `vocab_size` ids."""

    levels: tuple[TrieLevel, ...]
    vocab_size: int

    @classmethod
    def build(cls, data: Sequence[bytes | None]) -> TokenTrie:
        """Build the trie of the bytes of each token id; None and empty: the token is never allowed."""
        ids = np.array([id_ for id_, each in enumerate(data) if each], dtype=np.int64)
        texts = [each for each in data if each]
        lengths = np.array([len(each) for each in texts], dtype=np.int64)
        flat = np.frombuffer(b"".join(texts), dtype=np.uint8)
        starts = np.cumsum(lengths) - lengths
        at = np.zeros(len(ids), dtype=np.int64)
        levels = list[TrieLevel]()
        active = np.arange(len(ids))
        while len(active):
            depth = len(levels)
            keys = at[active] * 256 + flat[starts[active] + depth]
            prefixes, inverse = np.unique(keys, return_inverse=True)
            at[active] = inverse
            is_end = lengths[active] == depth + 1
            ended = active[is_end]
            levels.append(TrieLevel(prefixes // 256, prefixes % 256, ids[ended], at[ended]))
            active = active[~is_end]
        return cls(tuple(levels), len(data))


@dataclass(frozen=True)
class TokenTable:
    """The moves of tokens: `classes` `(V,)` has each token's class, `table` `(C, S)` the state after it.

    State 0 is dead, as is class 0, whose tokens are allowed nowhere; state 1 is the start. A text may end
    in the states `accepting` `(S,)`.
    """

    classes: Ints32
    table: Ints32
    accepting: Bools

    def with_first(self, first: TokenTable) -> TokenTable:
        """Return the table in which the first token of a text moves as in `first`, later ones as here.

        State 1 becomes that of the empty text; the last state is the start after a token.
        """
        pairs, classes = np.unique(
            np.stack((first.classes, self.classes)), axis=1, return_inverse=True
        )
        table = self.table[pairs[1]]
        start = table[:, 1].copy()
        last = np.int32(table.shape[1])
        table = np.where(table == 1, last, table)  # back at the start, but not at the beginning
        opening = first.table[pairs[0], 1]
        table[:, 1] = np.where(opening == 1, last, opening)
        table = np.column_stack((table, np.where(start == 1, last, start))).astype(np.int32)
        dead = ~table.any(axis=1)
        number = np.where(dead, 0, np.cumsum(~dead))
        kinds = np.concatenate((np.zeros((1, table.shape[1]), np.int32), table[~dead]))
        return TokenTable(
            classes=number[classes.reshape(-1)].astype(np.int32),
            table=kinds,
            accepting=np.append(self.accepting, self.accepting[1]),
        )

    def with_ends(self, end_ids: Sequence[int]) -> TokenTable:
        """Return the table in which a text that may end can be followed by these tokens, and only them.

        They have no text of their own then. The last state and class are theirs.
        """
        num_classes, num_states = self.table.shape
        table = np.zeros((num_classes + 1, num_states + 1), dtype=np.int32)
        table[:-1, :-1] = self.table
        table[-1, :-1][self.accepting] = num_states
        table[-1, -1] = num_states
        classes = self.classes.copy()
        classes[list(end_ids)] = num_classes
        is_used = np.bincount(classes, minlength=num_classes + 1) > 0
        table[~is_used] = 0  # no token moves like this any more
        return TokenTable(classes, table, np.append(self.accepting, True))


def token_table(automaton: ByteAutomaton, trie: TokenTrie) -> TokenTable:
    """Return the moves of all tokens. Raises GrammarError if they need too much work or memory."""
    num_states = len(automaton.table)
    columns = _Columns(num_states)
    identity = columns.ids(np.arange(num_states, dtype=np.int32)[None])
    of_node = identity
    token_columns = np.zeros(trie.vocab_size, dtype=np.int64)
    for level in trie.levels:
        num_classes = automaton.table.shape[1]
        keys = of_node[level.parents] * num_classes + automaton.classes[level.bytes]
        pairs, inverse = np.unique(keys, return_inverse=True)
        parents, classes = pairs // num_classes, pairs % num_classes
        found = np.zeros(len(pairs), dtype=np.int64)
        alive = np.flatnonzero(parents != columns.dead)
        size = max(1, CHUNK // num_states)
        for start in range(0, len(alive), size):
            part = alive[start : start + size]
            moved = automaton.table[columns.rows(parents[part]), classes[part, None]]
            found[part] = columns.ids(moved)
        of_node = found[inverse.reshape(-1)]
        token_columns[level.tokens] = of_node[level.ends]
    used, classes_of = np.unique(np.append(token_columns, columns.dead), return_inverse=True)
    order = np.concatenate(([columns.dead], used[used != columns.dead]))
    if len(order) * num_states > MAX_FINAL_TABLE:
        raise _too_large()
    number = np.zeros(columns.size, dtype=np.int32)
    number[order] = np.arange(len(order))
    return TokenTable(
        classes=number[used[classes_of.reshape(-1)[:-1]]],
        table=columns.rows(order),
        accepting=automaton.accepting,
    )


class _Columns:
    """Distinct columns of states `(S,)`, numbered; column 0 is dead everywhere."""

    dead = 0

    def __init__(self, num_states: int) -> None:
        generator = np.random.default_rng(0)
        self._weights = generator.integers(1, 1 << 62, num_states, dtype=np.int64) | 1
        self._table = np.zeros((64, num_states), dtype=np.int32)
        self._numbers: dict[int, int] = {0: 0}
        self._work, self.size = 0, 1

    def rows(self, ids: Ints) -> Ints32:
        """Return the columns with these numbers, one per row."""
        rows: Ints32 = self._table[ids]
        return rows

    def ids(self, columns: Ints32) -> Ints:
        """Return the numbers of columns, given as rows; new ones are added. Raises GrammarError."""
        self._work += columns.size
        if self._work > MAX_WORK:
            raise _too_large()
        hashes = columns.astype(np.int64) @ self._weights
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        numbers = np.zeros(len(distinct), dtype=np.int64)
        for index, value in enumerate(distinct.tolist()):
            number = self._numbers.get(value)
            if number is None:
                number = self._numbers[value] = self._add(columns[first[index]])
            numbers[index] = number
        found: Ints = numbers[inverse.reshape(-1)]
        if not np.array_equal(self._table[found], columns):
            raise GrammarError("two columns of the constraint have one hash; change the constraint")
        return found

    def _add(self, column: Ints32) -> int:
        if self.size == len(self._table):
            if 2 * self._table.size > MAX_TABLE:
                raise _too_large()
            self._table = np.concatenate((self._table, np.zeros_like(self._table)))
        self._table[self.size] = column
        self.size += 1
        return self.size - 1


def _too_large() -> GrammarError:
    return GrammarError(
        "the constraint is too large for this vocabulary; use fewer or shorter texts, or smaller counts of "
        "characters, items and repetitions"
    )
