"""Constraints as users write them: frozen descriptions, checked when they are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from unmask.errors import GrammarError, cut_text
from unmask.grammar.ebnf import MAX_GRAMMAR_DEPTH, ebnf_node
from unmask.grammar.json_schema import MAX_DEPTH, object_node, schema_node
from unmask.grammar.nodes import Node, either
from unmask.grammar.regex import parse_regex
from unmask.json_text import parse_json

MAX_SOURCE_CHARS = 1 << 16
"""Maximum length of a regular expression, a schema, a grammar, and of all choices together."""

ConstraintKind = Literal["regex", "choice", "json_schema", "json_object", "ebnf"]


@dataclass(frozen=True, slots=True)
class TextConstraint:
    """A language that an answer must belong to: its kind, and its definition as text.

    Make one with `regex`, `choice`, `json_schema`, `json_object` or `ebnf`. Equal constraints share
    their compiled automaton.
    """

    kind: ConstraintKind
    source: str

    def node(self) -> Node:
        """Return the syntax tree. Raises GrammarError for a definition that is not supported."""
        if self.kind == "regex":
            return parse_regex(self.source)
        value: object = json.loads(self.source)
        if self.kind == "json_object":
            assert isinstance(value, int), "made by json_object"
            return object_node(value)
        if self.kind == "ebnf":
            assert isinstance(value, list), "made by ebnf"
            return ebnf_node(str(value[0]), int(value[1]))
        if self.kind == "choice":
            assert isinstance(value, list), "made by choice"
            return either(str(each) for each in value)
        return schema_node(value)


def regex(pattern: str) -> TextConstraint:
    """Return the constraint that the whole answer matches a regular expression.

    The syntax is that of Python's `re` without what no finite automaton has (lookaround, backreferences)
    and without flags; `.` matches any character but a newline, and a match is always of the whole answer.
    Raises GrammarError.
    """
    if not isinstance(pattern, str):
        raise GrammarError(f"regex={pattern!r} must be a text")
    return _checked(TextConstraint("regex", _short(pattern, "the regular expression")))


def choice(options: Iterable[str]) -> TextConstraint:
    """Return the constraint that the answer is one of some texts. Raises GrammarError."""
    is_list = isinstance(options, Iterable) and not isinstance(options, str | bytes)
    texts = list(options) if is_list else []
    if not texts:
        raise GrammarError(
            f"choice={cut_text(repr(options))} must be a list with at least one text"
        )
    for each in texts:
        if not isinstance(each, str) or not each:
            raise GrammarError(
                f"choice has {each!r}; every option must be a text that is not empty"
            )
        if not _is_whole(each):
            raise _half(f"choice has {cut_text(ascii(each))}, which")
    source = json.dumps(list(dict.fromkeys(texts)), ensure_ascii=True)
    return _checked(TextConstraint("choice", _short(source, "the list of choices")))


def json_schema(schema: Mapping[str, object] | bool | str) -> TextConstraint:
    """Return the constraint that the answer is a JSON text of a schema (a mapping, or JSON text).

    Objects have their declared properties in the declared order, and no others unless the schema has an
    `additionalProperties` schema and no `properties`. After `:` and `,` a space may stand. Raises
    GrammarError for a keyword that is not supported, with its name.
    """
    try:
        plain = dict(schema) if isinstance(schema, Mapping) else schema
        source = plain if isinstance(plain, str) else json.dumps(plain, allow_nan=False)
        value = parse_json(_short(source, "the schema").encode())
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
        _check_characters(value, "#")
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, GrammarError):
            raise
        raise GrammarError(f"the schema is no JSON ({error}); correct it") from None
    if not isinstance(value, dict | bool):
        raise GrammarError(
            f"the schema is {cut_text(source)}; use an object, or true for any value"
        )
    return _checked(TextConstraint("json_schema", json.dumps(value)))


def json_object(max_depth: int = 3) -> TextConstraint:
    """Return the constraint that the answer is any JSON object, nested up to `max_depth` (1 to 5).

    An object of texts and numbers has depth 1. Raises GrammarError.
    """
    if isinstance(max_depth, bool) or not isinstance(max_depth, int):
        raise GrammarError(f"max_depth={max_depth!r} must be a whole number, 1 to {MAX_DEPTH}")
    if not 1 <= max_depth <= MAX_DEPTH:
        raise GrammarError(
            f"max_depth={max_depth} must be 1 to {MAX_DEPTH}; automata double with it"
        )
    return TextConstraint("json_object", str(max_depth))


def ebnf(grammar: str, depth: int = 3) -> TextConstraint:
    """Return the constraint that the answer is a text of a grammar's rule `root`, in GBNF's spelling.

    A rule may stand within itself up to `depth` times (1 to 8); deeper texts are left out. Recursion at the
    end or the beginning of a rule is not bounded. The syntax is in `unmask.grammar.ebnf`. Raises
    GrammarError.
    """
    if not isinstance(grammar, str):
        raise GrammarError(f"grammar={grammar!r} must be a text")
    if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= MAX_GRAMMAR_DEPTH:
        raise GrammarError(f"depth={depth!r} must be a whole number, 1 to {MAX_GRAMMAR_DEPTH}")
    return _checked(TextConstraint("ebnf", json.dumps([_short(grammar, "the grammar"), depth])))


def _short(source: str, name: str) -> str:
    if len(source) > MAX_SOURCE_CHARS:
        raise GrammarError(
            f"{name} has {len(source)} characters; at most {MAX_SOURCE_CHARS} are allowed; shorten it"
        )
    if not _is_whole(source):
        raise _half(f"{name}, at character {_first_half(source)},")
    return source


def _is_whole(source: str) -> bool:
    """Return whether UTF-8 can encode a text."""
    try:
        source.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _first_half(source: str) -> int:
    """Return the index of the first character that UTF-8 cannot encode."""
    return next(at for at, char in enumerate(source) if "\ud800" <= char <= "\udfff")


def _half(place: str) -> GrammarError:
    return GrammarError(
        f"{place} contains half a character (a lone surrogate); give the character whole, or leave it out"
    )


def _check_characters(value: object, path: str) -> None:
    """Raise GrammarError for half a character in a name or text of a JSON value."""
    if isinstance(value, str) and not _is_whole(value):
        raise _half(f"schema {path}: {cut_text(ascii(value))}")
    if isinstance(value, list):
        for number, each in enumerate(value):
            _check_characters(each, f"{path}/{number}")
    if isinstance(value, dict):
        for name, each in value.items():
            if not _is_whole(name):
                raise _half(f"schema {path}: the name {cut_text(ascii(name))}")
            _check_characters(each, f"{path}/{name}")


def _checked(constraint: TextConstraint) -> TextConstraint:
    """Return the constraint, after its definition has been understood."""
    constraint.node()
    return constraint
