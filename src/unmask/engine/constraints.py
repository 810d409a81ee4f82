"""Constraints compiled for one model's tokenizer, cached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from unmask.engine.token_bytes import vocabulary_bytes
from unmask.errors import GrammarError
from unmask.grammar.byte_automaton import compile_node
from unmask.grammar.constraint import TextConstraint
from unmask.grammar.reach import TokenAutomaton
from unmask.grammar.token_automaton import TokenTable, TokenTrie, token_table
from unmask.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_COMPILED = 16
"""Number of compiled constraints that are cached; clients choose them."""


class ConstraintCompiler:
    """Automata of constraints over the tokens of one model. Thread-safe; one is compiled at a time.

    Raises GrammarError for a model without a tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, spec: ModelSpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        self._lock = threading.Lock()
        self._table: Callable[[TextConstraint], TokenTable] = lru_cache(MAX_COMPILED)(self._compile)
        self._automaton: Callable[[TextConstraint, frozenset[int]], TokenAutomaton]
        self._automaton = lru_cache(MAX_COMPILED)(self._with_ends)

    def automaton(self, constraint: TextConstraint, end_ids: frozenset[int]) -> TokenAutomaton:
        """Return the automaton of texts that may be followed by `end_ids`, which have no text then.

        Raises GrammarError for a constraint that is too large or that no text meets.
        """
        if not isinstance(constraint, TextConstraint):
            raise GrammarError(
                f"constraint={constraint!r} must be unmask.regex(...), choice(...), json_schema(...), "
                f"json_object() or ebnf(...)"
            )
        with self._lock:
            return self._automaton(constraint, end_ids)

    def _with_ends(self, constraint: TextConstraint, end_ids: frozenset[int]) -> TokenAutomaton:
        table = self._table(constraint).with_ends(sorted(end_ids))
        automaton = TokenAutomaton(table)
        if automaton.num_needed(automaton.start, automaton.num_states) is None:
            raise GrammarError(
                "the model's tokens cannot spell any text of the constraint; use characters that its "
                "tokenizer knows"
            )
        return automaton

    def _compile(self, constraint: TextConstraint) -> TokenTable:
        automaton = compile_node(constraint.node())
        first, later = self.tries
        table = token_table(automaton, later)
        return table if first is later else table.with_first(token_table(automaton, first))

    @cached_property
    def tries(self) -> tuple[TokenTrie, TokenTrie]:
        """The tokens at the beginning of a text, and after others; the same if they do not differ."""
        if self.tokenizer is None:
            raise GrammarError("a constraint needs a model with a tokenizer; this one has none")
        data = vocabulary_bytes(self.tokenizer, self.spec.vocab_size, self.spec.mask_id)
        later = TokenTrie.build(data.later)
        return (later if data.first == data.later else TokenTrie.build(data.first)), later
