"""The schema of a call of one of some tools, made of the schemas of their arguments.

The arguments of a call are always an object. So of the values that a tool's schema admits, the objects
alone are left; a schema that admits none is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from unmask.errors import GrammarError
from unmask.grammar.schema_keywords import ANNOTATIONS

Schema = Mapping[str, JsonValue]
DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data, in which `$ref` and all other keywords mean nothing."""
BY_NAME = frozenset(
    {
        "properties",
        "patternProperties",
        "$defs",
        "definitions",
        "dependentSchemas",
        "dependencies",
    }
)
"""Keywords whose values hold a schema by name, where a name may be that of a keyword."""
NO_PARAMETERS: Schema = {"type": "object", "properties": {}}


def call_schema(tools: Iterable[tuple[str, Schema | None]]) -> dict[str, JsonValue]:
    """Return the schema of one call of one of the tools: an object with `name` and `arguments`.

    A tool is a name and the schema of its arguments (None: it has none). Raises GrammarError for a schema
    that admits no object.
    """
    calls: list[JsonValue] = []
    for number, (name, parameters) in enumerate(tools):
        arguments = _arguments(name, dict(parameters or NO_PARAMETERS), number)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments},
                "required": ["name", "arguments"],
            }
        )
    return {"anyOf": calls}


def _arguments(name: str, parameters: dict[str, JsonValue], number: int) -> JsonValue:
    """Return the schema of the arguments in the call of tool `number`. Raises GrammarError."""
    place = f"#/anyOf/{number}/properties/arguments"
    objects = _Objects(parameters).of(parameters)
    if objects is False:
        raise GrammarError(
            f"the parameters of function {name!r} admit no object, but the arguments of a call are one; "
            f'give them "type": "object"'
        )
    if objects == parameters:
        return moved(parameters, place)
    # A reference means the schema as it was given, with its values that are no objects.
    given = moved(parameters, f"{place}/$defs/parameters")
    arguments = moved(objects, f"{place}/$defs/parameters")
    assert isinstance(arguments, dict), "a schema of objects alone"
    return {**arguments, "$defs": {"parameters": given}}


def moved(schema: JsonValue, place: str) -> JsonValue:
    """Return a schema whose references hold at another place of a document; its data stay as they are."""
    if isinstance(schema, list):
        return [moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, JsonValue] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[key] = place + value[1:]
        elif key in BY_NAME and isinstance(value, dict):
            found[key] = {name: moved(each, place) for name, each in value.items()}
        else:
            found[key] = value if key in DATA else moved(value, place)
    return found


@dataclass(frozen=True, slots=True)
class _Objects:
    """The part of a document's schemas that admits objects; what a grammar refuses stays as it is."""

    document: JsonValue

    def of(self, schema: JsonValue, refs: tuple[str, ...] = ()) -> JsonValue:
        """Return a schema of the objects that one admits, False for none; `refs` led to it."""
        if schema is True:
            return {"type": "object"}
        if not isinstance(schema, dict):
            return schema
        given = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
        kinds = schema.get("type")
        if kinds is not None and "object" not in (kinds if isinstance(kinds, list) else [kinds]):
            return False
        if "$ref" in given:
            return self._of_reference(schema, refs) if given == {"$ref"} else schema
        for key in ("allOf", "anyOf", "oneOf"):
            if key in given:
                return self._of_options(schema, key, refs)
        values = [schema["const"]] if "const" in given else schema.get("enum")
        if isinstance(values, list) and not any(isinstance(each, dict) for each in values):
            return False
        return schema if kinds == "object" else {**schema, "type": "object"}

    def _of_reference(self, schema: dict[str, JsonValue], refs: tuple[str, ...]) -> JsonValue:
        target = schema["$ref"]
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            return schema
        if target in refs:
            return False
        found: JsonValue = self.document
        for part in target.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                return schema
        objects = self.of(found, (*refs, target))
        return schema if objects == found else objects

    def _of_options(
        self, schema: dict[str, JsonValue], key: str, refs: tuple[str, ...]
    ) -> JsonValue:
        options = schema[key]
        if not isinstance(options, list) or not options or (key == "allOf" and len(options) > 1):
            return schema
        objects = [self.of(each, refs) for each in options]
        if all(each is False for each in objects):
            return False
        types: dict[str, JsonValue] = {"type": "object"} if "type" in schema else {}
        return {**schema, **types, key: objects}
