"""JSON texts as syntax trees: strings, constants, and values of any kind up to a depth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from unmask.grammar.nodes import (
    EMPTY,
    MAX_CODE_POINT,
    Chars,
    Concat,
    Either,
    Members,
    Node,
    Ranges,
    Repeat,
    Text,
    chars,
    complement,
    concat,
    either,
    intersect,
    optional,
    text,
    union,
)
from unmask.grammar.numbers import NUMBER

ESCAPED: Ranges = union(((0, 0x1F), (34, 34), (92, 92)))
"""Characters that a JSON string has as escapes only: controls, the quotation mark and the backslash."""
SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
ANY_CHAR: Ranges = ((0, MAX_CODE_POINT),)

SPACE = optional(text(" "))
"""After a colon or a comma, a space may stand."""
COMMA, COLON = concat(",", SPACE), concat(":", SPACE)


def string_char(ranges: Ranges) -> Node:
    """Return one of these characters within a JSON string.

    Controls have their short escape; those without one, such as U+0001, are left out.
    """
    raw = intersect(ranges, complement(ESCAPED))
    is_inside = {code for low, high in ranges for code in SHORT_ESCAPES if low <= code <= high}
    escapes = "".join(SHORT_ESCAPES[code] for code in sorted(is_inside))
    options: list[Node] = [Chars(raw)] if raw else []
    if escapes:
        options.append(concat("\\", chars(escapes)))
    return options[0] if len(options) == 1 else either(options)


def string(content: Node) -> Node:
    """Return a JSON string, whose content is as in the text: escaped."""
    return concat('"', content, '"')


def any_string(low: int = 0, high: int | None = None) -> Node:
    """Return the JSON strings of `low` to `high` characters."""
    return string(Repeat(string_char(ANY_CHAR), low, high))


def escaped(node: Node) -> Node:
    """Return the JSON form of a language of string contents."""
    if isinstance(node, Chars):
        return string_char(node.ranges)
    if isinstance(node, Text):
        return text(json.dumps(node.data.decode("utf-8"), ensure_ascii=False)[1:-1])
    if isinstance(node, Concat):
        return Concat(tuple(map(escaped, node.parts)))
    if isinstance(node, Either):
        return Either(tuple(map(escaped, node.options)))
    assert isinstance(node, Repeat), "regular expressions have no other nodes"
    return Repeat(escaped(node.item), node.low, node.high)


def constant(value: object) -> Node:
    """Return the text of one JSON value, with an optional space after colons and commas."""
    if isinstance(value, Mapping):
        pairs = [concat(constant(str(key)), COLON, constant(each)) for key, each in value.items()]
        return concat("{", joined(pairs), "}")
    if isinstance(value, list | tuple):
        return concat("[", joined([constant(each) for each in value]), "]")
    return text(json.dumps(value, ensure_ascii=False))


def joined(parts: Sequence[Node]) -> Node:
    """Return all parts with commas between them."""
    return Members(tuple((part, True) for part in parts), COMMA) if parts else EMPTY


def array(item: Node, low: int = 0, high: int | None = None) -> Node:
    """Return the arrays of `low` to `high` items."""
    return concat("[", Repeat(item, low, high, COMMA), "]")


def mapping(value: Node, low: int = 0, high: int | None = None) -> Node:
    """Return the objects with `low` to `high` members of any names."""
    member = concat(any_string(), COLON, value)
    return concat("{", Repeat(member, low, high, COMMA), "}")


def any_value(depth: int) -> Node:
    """Return any JSON value; arrays and objects are nested up to `depth`, 0: none."""
    scalars: list[Node | str] = [any_string(), NUMBER, "true", "false", "null"]
    if depth <= 0:
        return either(scalars)
    inner = any_value(depth - 1)
    return either([*scalars, array(inner), mapping(inner)])
