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
from unmask.grammar.numbers import MAX_BOUNDED, MAX_INTEGER, decimals, integers
from unmask.grammar.regex import parse_regex

MAX_DEPTH = 5
"""Maximum nesting of values of any kind; the automaton doubles with each level."""
ANY_DEPTH = 1
"""Nesting of a value that the schema does not describe."""
MAX_RECURSION = 3
"""Maximum number of times that a definition may contain itself; deeper alternatives are left out."""
MAX_VISITS = 5_000
"""Maximum number of subschemas, with those of references counted at every use."""

Schema = Mapping[str, object]

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "$schema",
        "$id",
        "$anchor",
        "$comment",
        "$defs",
        "definitions",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "strict",
        "discriminator",
    ]
)
KEYWORDS: dict[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
REFUSED: dict[str, frozenset[str]] = {
    "integer": frozenset({"multipleOf"}),
    "number": frozenset({"multipleOf"}),
    "array": frozenset(
        [
            "contains",
            "minContains",
            "maxContains",
            "uniqueItems",
            "unevaluatedItems",
            "additionalItems",
        ]
    ),
    "object": frozenset(
        [
            "patternProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
            "dependentRequired",
            "dependencies",
            "dependentSchemas",
            "unevaluatedProperties",
        ]
    ),
}
"""Keywords that are known to concern one kind of value only, and not supported there."""
HARMLESS: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (False, True),
    "unevaluatedItems": (True,),
    "minProperties": (0,),
}
"""Values of unsupported keywords that cannot be violated."""
FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}"
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "email": r"[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)*\.[a-z]{2,}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"


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

    def node(self, schema: object, path: str, refs: tuple[str, ...]) -> Node:
        """Return a subschema at a path; `refs` are the references that led to it."""
        self.num_visits += 1
        if self.num_visits > MAX_VISITS:
            raise GrammarError(
                f"the schema has more than {MAX_VISITS} parts, with those of $ref counted at every use; "
                f"simplify it"
            )
        if schema is True or schema == {}:
            return any_value(ANY_DEPTH)
        if schema is False:
            return NOTHING
        if not isinstance(schema, Mapping):
            raise GrammarError(
                f"schema {path} is {cut_text(repr(schema))}; use an object or a boolean"
            )
        given = {k: v for k, v in schema.items() if k not in ANNOTATIONS and not k.startswith("x-")}
        for keyword, build in (
            ("$ref", self._reference),
            ("allOf", self._all_of),
            ("anyOf", self._any_of),
            ("oneOf", self._one_of),
            ("const", self._constants),
            ("enum", self._constants),
        ):
            if keyword in given:
                return build(given, path, refs)
        return self._typed(given, path, refs)

    def _alone(self, given: Schema, path: str, keyword: str, *others: str) -> None:
        """Refuse keywords beside one that is supported without them only."""
        for other in given:
            if other != keyword and other not in others:
                _refuse(path, other, f"beside {keyword}")

    def _reference(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        self._alone(given, path, "$ref")
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
            if isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                raise GrammarError(f"schema {path}: $ref={target!r} names nothing in the schema")
        return self.node(found, target, (*refs, target))

    def _all_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        parts = given["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            _refuse(path, "allOf", "with more than one schema")
        self._alone(given, path, "allOf")
        return self.node(parts[0], f"{path}/allOf/0", refs)

    def _any_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        self._alone(given, path, "anyOf", "type")
        options = _list(given, path, "anyOf")
        types = {"type": given["type"]} if "type" in given else {}
        return either(
            self.node({**types, **option} if isinstance(option, Mapping) else option, where, refs)
            for number, option in enumerate(options)
            for where in (f"{path}/anyOf/{number}",)
        )

    def _one_of(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        """Return the union of alternatives of which no value can meet two."""
        self._alone(given, path, "oneOf")
        options = _list(given, path, "oneOf")
        nodes = [self.node(each, f"{path}/oneOf/{i}", refs) for i, each in enumerate(options)]
        resolved = [self._resolved(each) for each in options]
        for i, first in enumerate(resolved):
            if not all(_are_disjoint(first, second) for second in resolved[:i]):
                _refuse(
                    path, "oneOf", "whose alternatives neither have different types nor a property with "
                    "different const values; use anyOf"
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
        self._alone(given, path, keyword, "type")
        values = [given["const"]] if keyword == "const" else _list(given, path, "enum")
        types = _types(given, path)
        chosen = [value for value in values if types is None or _type_of(value) & set(types)]
        if not chosen:
            raise GrammarError(
                f"schema {path}: no value of {keyword} has the type {given['type']!r}"
            )
        return either(constant(value) for value in chosen)

    def _typed(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        known = {"type"}.union(*KEYWORDS.values(), *REFUSED.values())
        for keyword in given:
            if keyword not in known:
                _refuse(path, keyword)
        types = _types(given, path)
        if types is None:
            types = [kind for kind in KEYWORDS if any(k in given for k in KEYWORDS[kind])]
            types = ["number"] if types == ["integer", "number"] else types
            if not types:
                for keyword in given:
                    _refuse(path, keyword, "without type")
                return any_value(ANY_DEPTH)
        nodes = []
        for kind in types:
            for keyword in REFUSED.get(kind, ()):
                if keyword in given and given[keyword] not in HARMLESS.get(keyword, ()):
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
        return decimals(low, high, above=above, below=below)

    def _array(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        low, high = _count(given, path, "minItems") or 0, _count(given, path, "maxItems")
        _check_order(path, "minItems", low, "maxItems", high)
        if "prefixItems" not in given:
            item = self.node(given.get("items", True), f"{path}/items", refs)
            return array(item, low, high)
        first = _list(given, path, "prefixItems")
        if low > len(first) or (high is not None and high < len(first)):
            _refuse(path, "prefixItems", "with minItems above or maxItems below its length")
        items = [self.node(each, f"{path}/prefixItems/{i}", refs) for i, each in enumerate(first)]
        return concat("[", Members(tuple((item, True) for item in items), COMMA), "]")

    def _object(self, given: Schema, path: str, refs: tuple[str, ...]) -> Node:
        properties, more = given.get("properties", {}), given.get("additionalProperties", True)
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
            return mapping(self.node(more, f"{path}/additionalProperties", refs))
        members: list[tuple[Node, bool]] = []
        for name, schema in properties.items():
            value = self.node(schema, f"{path}/properties/{name}", refs)
            members.append((concat(constant(str(name)), COLON, value), name in required))
        for name in dict.fromkeys(required):
            if name not in properties:
                if more is False:
                    raise GrammarError(
                        f"schema {path}: the required property {name!r} is not declared, and "
                        f"additionalProperties is false"
                    )
                value = self.node(more, f"{path}/additionalProperties", refs)
                members.append((concat(constant(name), COLON, value), True))
        return concat("{", Members(tuple(members), COMMA), "}")


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


def _types(given: Schema, path: str) -> list[str] | None:
    value = given.get("type")
    if value is None:
        return None
    types: list[str] = []
    for kind in value if isinstance(value, list) else [value]:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise GrammarError(
                f"schema {path}: type={kind!r} is unknown; use {', '.join(KEYWORDS)}"
            )
        types.append(kind)
    return types


def _type_of(value: object) -> set[str]:
    """Return the names of the types that a JSON value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    if value is None:
        return {"null"}
    return {
        "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    }


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


def _are_disjoint(first: object, second: object) -> bool:
    """Return whether no value meets both schemas, as their types or const properties show."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return first is False or second is False
    values = [_possible(each) for each in (first, second)]
    if values[0] is not None and values[1] is not None:
        return not values[0] & values[1]
    kinds = [_kinds(each) for each in (first, second)]
    if kinds[0] is not None and kinds[1] is not None and not kinds[0] & kinds[1]:
        return True
    tagged = [_tags(each) for each in (first, second)]
    return any(
        not tagged[0][name] & tagged[1][name] for name in tagged[0].keys() & tagged[1].keys()
    )


def _kinds(schema: Schema) -> set[str] | None:
    """Return the types of a schema's values; None: any."""
    if "const" in schema:
        return _type_of(schema["const"])
    types = _types(schema, "#")
    if types is None:
        return {"object"} if "properties" in schema and "type" in schema else None
    return {*types, *(("integer",) if "number" in types else ())}


def _possible(schema: Schema) -> set[str] | None:
    """Return the values of const or enum, as text; None without them."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return set(map(repr, values)) if isinstance(values, list) else None


def _tags(schema: Schema) -> dict[str, set[str]]:
    """Return the possible values of required properties that have const or enum."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return {}
    tags = {
        name: _possible(each)
        for name, each in properties.items()
        if name in required and isinstance(each, Mapping)
    }
    return {name: values for name, values in tags.items() if values is not None}
