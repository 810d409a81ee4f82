"""Keywords of JSON schemas: those that are supported, refused, or say nothing about values."""

from __future__ import annotations

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
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"}),
    "object": frozenset(
        {"properties", "required", "additionalProperties", "unevaluatedProperties"}
    ),
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
        ]
    ),
}
"""Keywords that are known to concern one kind of value only, and not supported there."""
HARMLESS: dict[str, object] = {"uniqueItems": False, "minProperties": 0}
"""Values of unsupported keywords that cannot be violated."""
COMPOUNDS = ("$ref", "allOf", "anyOf", "oneOf")
"""Keywords whose value is another schema, or several, for the same value."""
FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}"
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])",
    "email": r"[a-z0-9]+([._-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)*\.[a-z]{2,}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
