"""JSON schemas as syntax trees.

Every text of the tree is valid by the schema; the converse does not hold: properties stand in the declared
order, undeclared ones are left out where others are declared, and values of any kind are nested up to a
depth. A keyword that could be violated and that is not supported is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from math import ceil, floor, isfinite
from typing import NoReturn

from unmask.errors import GrammarError, cut_text
from unmask.grammar.json_text_nodes import (
    COLON,
    COMMA,
    any_string,
    any_value,
    array,
    constant,
    escaped,
    mapping,
    string,
)
from unmask.grammar.nodes import NOTHING, Members, Node, concat, either
from unmask.grammar.numbers import MAX_BOUNDED, MAX_DECIMALS, MAX_INTEGER, decimals, integers
from unmask.grammar.regex import parse_regex
from unmask.grammar.schema_keywords import ANNOTATIONS, FORMATS, HARMLESS, KEYWORDS, REFUSED
from unmask.grammar.schema_values import (
    Schema,
    are_disjoint,
    common_types,
    constants_of,
    distinct_values,
    kinds_of_keywords,
    types_of_schema,
    types_of_value,
)

MAX_DEPTH = 5
"""Maximum nesting of values of any kind; the automaton doubles with each level."""
ANY_DEPTH = 1
"""Nesting of a value that the schema does not describe."""
MAX_RECURSION = 3
"""Maximum number of times that a definition may contain itself; deeper alternatives are left out."""
MAX_VISITS = 5_000
"""Maximum number of subschemas, with those of references counted at every use."""


def object_node(max_depth: int) -> Node:
    """Return any JSON object, nested up to `max_depth`, at least 1."""
    return mapping(any_value(max_depth - 1))


def schema_node(schema: object) -> Node:
    """Return the texts of a schema. Raises GrammarError for what is not supported, by name and path."""
    return _Reader(schema).node(schema, "#", ())


class _Reader:
    """A schema's document, for references, and the number of subschemas read so far."""

    def __init__(self, document: object) -> None:
        self.document, self.num_visits = document, 0
        self.by_type: dict[str, Callable[[Schema, str, tuple[str, ...]], Node]] = {
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "array": self._array,
            "object": self._object,
            "boolean": lambda *_: either(("true", "false")),
            "null": lambda *_: concat("null"),
        }

    def node(
        self, schema: object, path: str, refs: tuple[str, ...], types: list[str] | None = None
    ) -> Node:
        """Return a subschema at a path; `refs` are the references that led to it.

        `types` are those that the schema around it allows, None: any.
        """
        self.num_visits += 1
        if self.num_visits > MAX_VISITS:
            raise GrammarError(
                f"the schema has more than {MAX_VISITS} parts, with those of $ref counted at every use; "
                f"simplify it"
            )
        if schema is True:
            schema = {}
        if schema == {} and types is None:
            return any_value(ANY_DEPTH)
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise GrammarError(
                f"schema {path} is {cut_text(repr(schema))}; use an object or a boolean"
            )
        given = {k: v for k, v in schema.items() if k not in ANNOTATIONS and not k.startswith("x-")}
        if types is not None:
            own = types_of_schema(given, path)
            types = types if own is None else common_types(types, own)
            values = constants_of(given)
            if not types or values is not None and not _of_types(values, types):
                return NOTHING
            given["type"] = types
        for keyword, build in (
            ("$ref", self._reference),
            ("allOf", self._all_of),
            ("anyOf", self._any_of),
            ("oneOf", self._one_of),
            ("const", self._constants),
            ("enum", self._constants),
        ):
            if keyword in given:
                self._alone(given, path, keyword, "type")
                return build(given, path, refs)
        return self._typed(given, path, refs)

    def _alone(self, given: Schema, path: str, keyword: str, *others: str) -> None:
        """Refuse keywords beside one that is supported without them only."""
        for other in given:
            if other != keyword and other not in others:
                _refuse(path, other, f"beside {keyword}")

    def _reference(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        target = given["$ref"]
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise GrammarError(
                f"schema {path}: $ref={target!r} is not supported; use one within the schema, such as "
                f"'#/$defs/NAME'"
            )
        if refs.count(target) >= MAX_RECURSION:
            return NOTHING
        found: object = self.document
        for part in target.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name in map(str, range(len(found))):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                raise GrammarError(f"schema {path}: $ref={target!r} names nothing in the schema")
        return self.node(found, target, (*refs, target), types_of_schema(given, path))

    def _all_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        parts = given["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            _refuse(path, "allOf", "with more than one schema")
        return self.node(parts[0], f"{path}/allOf/0", refs, types_of_schema(given, path))

    def _any_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        options, types = _list(given, path, "anyOf"), types_of_schema(given, path)
        return either(
            self.node(option, f"{path}/anyOf/{number}", refs, types)
            for number, option in enumerate(options)
        )

    def _one_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        """Return the union of alternatives of which no value can meet two."""
        options, types = _list(given, path, "oneOf"), types_of_schema(given, path)
        nodes = [
            self.node(each, f"{path}/oneOf/{i}", refs, types) for i, each in enumerate(options)
        ]
        resolved = [self._resolved(each) for each in options]
        for i, first in enumerate(resolved):
            if not all(are_disjoint(first, second, types) for second in resolved[:i]):
                _refuse(
                    path, "oneOf", "whose alternatives neither have different types or constants nor a "
                    "required property with different ones; use anyOf"
                )  # fmt: skip
        return either(nodes)

    def _resolved(self, schema: object) -> object:
        """Return a schema, or the one that its reference names."""
        for _ in range(MAX_RECURSION):
            target = schema.get("$ref") if isinstance(schema, Mapping) else None
            if not isinstance(target, str):
                break
            schema = self.document
            for part in target.split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                schema = schema.get(name) if isinstance(schema, Mapping) else None
        return schema

    def _constants(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        keyword = "const" if "const" in given else "enum"
        values = [given["const"]] if keyword == "const" else _list(given, path, "enum")
        types = types_of_schema(given, path)
        chosen = values if types is None else _of_types(values, types)
        if not chosen:
            raise GrammarError(
                f"schema {path}: no value of {keyword} has the type {given['type']!r}"
            )
        return either(constant(value) for value in distinct_values(chosen))

    def _typed(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        known = {"type"}.union(*KEYWORDS.values(), *REFUSED.values())
        for keyword in given:
            if keyword not in known:
                _refuse(path, keyword)
        types = types_of_schema(given, path)
        if types is None:
            types = kinds_of_keywords(given)
            if not types:
                for keyword in given:
                    _refuse(path, keyword, "without type")
                return any_value(ANY_DEPTH)
        nodes = []
        for kind in types:
            for keyword in REFUSED.get(kind, ()):
                if keyword in given and not _is_harmless(keyword, given[keyword]):
                    _refuse(path, keyword)
            nodes.append(self.by_type[kind](given, path, refs))
        return either(nodes)

    def _string(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        low, high = _count(given, path, "minLength") or 0, _count(given, path, "maxLength")
        chosen = [key for key in ("pattern", "format") if key in given]
        if not chosen:
            _check_order(path, "minLength", low, "maxLength", high)
            return any_string(low, high)
        if len(chosen) > 1 or low or high is not None:
            _refuse(
                path,
                chosen[0],
                f"beside {', '.join(sorted(set(given) & KEYWORDS['string'] - {chosen[0]}))}",
            )
        value = given[chosen[0]]
        if chosen == ["format"]:
            if not isinstance(value, str) or value not in FORMATS:
                raise GrammarError(
                    f"schema {path}: format={value!r} is not supported; use pattern, or one of "
                    f"{', '.join(sorted(FORMATS))}"
                )
            return string(escaped(parse_regex(FORMATS[value])))
        if not isinstance(value, str):
            raise GrammarError(f"schema {path}: pattern={value!r} must be a text")
        return string(escaped(parse_regex(value, is_search=True)))

    def _integer(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        low, high, above, below = _bounds(given, path)
        least = None if low is None else floor(low) + 1 if above else ceil(low)
        most = None if high is None else ceil(high) - 1 if below else floor(high)
        _check_range(path, "integer", least, most, MAX_INTEGER)
        return integers(least, most)

    def _number(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        low, high, above, below = _bounds(given, path)
        _check_range(path, "number", low, high, MAX_BOUNDED)
        node = decimals(low, high, above=above, below=below)
        if node == NOTHING:
            raise GrammarError(
                f"schema {path}: no number of at most {MAX_DECIMALS} decimals lies within its bounds; use "
                f"bounds that are farther apart"
            )
        return node

    def _array(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        low, high = _count(given, path, "minItems") or 0, _count(given, path, "maxItems")
        _check_order(path, "minItems", low, "maxItems", high)
        if "prefixItems" not in given:
            keyword = "items" if "items" in given else "unevaluatedItems"
            item = self.node(given.get(keyword, True), f"{path}/{keyword}", refs)
            return array(item, low, high)
        first = _list(given, path, "prefixItems")
        if low > len(first) or (high is not None and high < len(first)):
            _refuse(path, "prefixItems", "with minItems above or maxItems below its length")
        items = [self.node(each, f"{path}/prefixItems/{i}", refs) for i, each in enumerate(first)]
        return concat("[", Members(tuple((item, True) for item in items), COMMA), "]")

    def _object(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        properties = given.get("properties", {})
        others = "additionalProperties"
        others = others if others in given else "unevaluatedProperties"
        more = given.get(others, True)
        required = given.get("required", [])
        if not isinstance(properties, Mapping):
            raise GrammarError(
                f"schema {path}: properties={cut_text(repr(properties))} must be an object"
            )
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise GrammarError(
                f"schema {path}: required={cut_text(repr(required))} must be a list of names"
            )
        if not properties and not required:
            if more is False or (properties == given.get("properties") and more is True):
                return concat("{}")
            return mapping(self.node(more, f"{path}/{others}", refs))
        members: list[tuple[Node, bool]] = []
        for name, schema in properties.items():
            value = self.node(schema, f"{path}/properties/{name}", refs)
            members.append((concat(constant(str(name)), COLON, value), name in required))
        for name in dict.fromkeys(required):
            if name not in properties:
                if more is False:
                    raise GrammarError(
                        f"schema {path}: the required property {name!r} is not declared, and "
                        f"{others} is false"
                    )
                value = self.node(more, f"{path}/{others}", refs)
                members.append((concat(constant(name), COLON, value), True))
        return concat("{", Members(tuple(members), COMMA), "}")


def _of_types(values: list[object], types: list[str]) -> list[object]:
    """Return the values that have one of the types."""
    return [value for value in values if types_of_value(value) & set(types)]


def _is_harmless(keyword: str, value: object) -> bool:
    """Return whether an unsupported keyword has a value that nothing violates."""
    own = HARMLESS.get(keyword)
    return own is not None and type(value) is type(own) and value == own


def _refuse(path: str, keyword: str, why: str = "") -> NoReturn:
    """Raise GrammarError for a keyword that is not supported."""
    raise GrammarError(
        f"schema {path}: the keyword {keyword!r} {why + ' ' if why else ''}is not supported; leave it "
        f"out, or describe the values with anyOf, enum, const, type, properties, items, pattern or bounds"
    )


def _list(given: Schema, path: str, keyword: str) -> list[object]:
    value = given[keyword]
    if not isinstance(value, list) or not value:
        raise GrammarError(
            f"schema {path}: {keyword}={cut_text(repr(value))} must be a list, not empty"
        )
    return value


def _count(given: Schema, path: str, keyword: str) -> int | None:
    value = given.get(keyword)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GrammarError(f"schema {path}: {keyword}={value!r} must be a whole number, at least 0")
    return value


def _check_order(path: str, first: str, low: int, second: str, high: int | None) -> None:
    if high is not None and high < low:
        raise GrammarError(f"schema {path}: {first}={low} is greater than {second}={high}")


def _check_range(
    path: str, kind: str, low: int | Decimal | None, high: int | Decimal | None, most: int
) -> None:
    """Raise GrammarError if no number is within inclusive bounds and `-most` to `most`."""
    if low is not None and high is not None and low > high:
        raise GrammarError(
            f"schema {path}: no {kind} lies within its bounds; use a minimum below the maximum"
        )
    if low is not None and low > most or high is not None and high < -most:
        raise GrammarError(
            f"schema {path}: the bounds admit no {kind} of at most {len(str(most))} digits before the "
            f"point, and longer ones are not produced; use smaller bounds, or a string with a pattern"
        )


def _bounds(given: Schema, path: str) -> tuple[Decimal | None, Decimal | None, bool, bool]:
    """Return the bounds of a number and whether they are exclusive."""
    found: dict[str, Decimal | None] = {}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = given.get(keyword)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise GrammarError(f"schema {path}: {keyword}={value!r} must be a number")
        if isinstance(value, float) and not isfinite(value):
            raise GrammarError(f"schema {path}: {keyword}={value!r} must be a finite number")
        found[keyword] = None if value is None else Decimal(str(value))
    low, high = found["minimum"], found["maximum"]
    least, most = found["exclusiveMinimum"], found["exclusiveMaximum"]
    above = least is not None and (low is None or least >= low)
    below = most is not None and (high is None or most <= high)
    return least if above else low, most if below else high, above, below
