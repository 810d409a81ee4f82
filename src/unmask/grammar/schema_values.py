"""Types and equality of JSON values, and pairs of schemas that no value meets both of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from unmask.errors import GrammarError
from unmask.grammar.schema_keywords import COMPOUNDS, KEYWORDS

Schema = Mapping[str, object]
ALL_KINDS = frozenset(KEYWORDS)


def types_of_schema(given: Schema, path: str) -> list[str] | None:
    """Return the names that `type` lists; None without it. Raises GrammarError."""
    if "type" not in given:
        return None
    value = given["type"]
    types: list[str] = []
    for kind in value if isinstance(value, list) else [value]:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise GrammarError(
                f"schema {path}: type={kind!r} is unknown; use {', '.join(KEYWORDS)}"
            )
        types.append(kind)
    if not types:
        raise GrammarError(f"schema {path}: type is an empty list; use {', '.join(KEYWORDS)}")
    return types


def types_of_value(value: object) -> set[str]:
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


def common_types(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the types of the values that have one type of each list; integers are numbers."""
    found: list[str] = []
    for kind in second:
        if kind in first or kind == "integer" and "number" in first:
            found.append(kind)
        elif kind == "number" and "integer" in first:
            found.append("integer")
    return list(dict.fromkeys(found))


def constants_of(schema: Schema) -> list[object] | None:
    """Return the values of `const` or `enum`; None without them, or if `enum` is no list."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def value_key(value: object) -> Hashable:
    """Return a key that two JSON values share if and only if they are equal: 1 is 1.0, and not true."""
    if isinstance(value, Mapping):
        return "object", frozenset((key, value_key(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(value_key, value))
    if isinstance(value, bool) or value is None:
        return "name", value
    return ("string" if isinstance(value, str) else "number"), value


def distinct_values(values: Iterable[object]) -> list[object]:
    """Return the values without repetitions, in order."""
    found: dict[Hashable, object] = {}
    for value in values:
        found.setdefault(value_key(value), value)
    return list(found.values())


def are_disjoint(first: object, second: object, types: Sequence[str] | None) -> bool:
    """Return whether no text of either schema's tree meets the other schema.

    Seen are constants, types and required properties with constants; False says only that these do not
    show it. `types` are those that both are narrowed to, None: any.
    """
    if first is False or second is False:
        return True
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return False
    keys = [_constant_keys(each) for each in (first, second)]
    if keys[0] is not None and keys[1] is not None:
        return not keys[0] & keys[1]
    return _misses(first, second, types) and _misses(second, first, types)


def _misses(made: Schema, other: Schema, types: Sequence[str] | None) -> bool:
    """Return whether no text of the tree of `made` meets `other`."""
    shared = _made_kinds(made, types) & _allowed_kinds(other)
    if shared != {"object"}:
        return not shared
    required = made.get("required")
    tags, others = _tags(made), _tags(other)
    return isinstance(required, list) and any(
        name in required and not tags[name] & others[name] for name in tags.keys() & others.keys()
    )


def _made_kinds(schema: Schema, types: Sequence[str] | None) -> set[str]:
    """Return the types of the values that the tree of a schema has."""
    if "type" in schema or constants_of(schema) is not None:
        kinds = _allowed_kinds(schema)
    elif types is not None or any(keyword in schema for keyword in COMPOUNDS):
        # narrowed to types, a schema without its own has values of all of them
        kinds = set(ALL_KINDS)
    else:
        kinds = _with_integer(kinds_of_keywords(schema)) or set(ALL_KINDS)
    return kinds if types is None else kinds & _with_integer(types)


def kinds_of_keywords(schema: Schema) -> list[str]:
    """Return the types that the keywords of a schema without `type` concern."""
    kinds = [kind for kind, own in KEYWORDS.items() if any(keyword in schema for keyword in own)]
    return ["number"] if kinds == ["integer", "number"] else kinds


def _allowed_kinds(schema: Schema) -> set[str]:
    """Return the types of the values that may meet a schema."""
    values = constants_of(schema)
    if values is not None:
        return set[str]().union(*map(types_of_value, values))
    types = types_of_schema(schema, "#")
    return set(ALL_KINDS) if types is None else _with_integer(types)


def _with_integer(types: Iterable[str]) -> set[str]:
    found = set(types)
    return found | {"integer"} if "number" in found else found


def _constant_keys(schema: Schema) -> set[Hashable] | None:
    values = constants_of(schema)
    return None if values is None else set(map(value_key, values))


def _tags(schema: Schema) -> dict[str, set[Hashable]]:
    """Return the keys of the possible values of properties that have `const` or `enum`."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    keys = {
        name: _constant_keys(each) for name, each in properties.items() if isinstance(each, Mapping)
    }
    return {name: each for name, each in keys.items() if each is not None}
