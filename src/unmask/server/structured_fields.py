"""Fields by which clients ask for structured output, in the spellings of OpenAI, vLLM and SGLang."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import JsonValue

from unmask.errors import GrammarError
from unmask.grammar.constraint import TextConstraint, choice, ebnf, json_object, json_schema, regex
from unmask.server.errors import ApiError, library_error

if TYPE_CHECKING:
    from unmask.server.protocol import DecodingRequest

FORMAT_TYPES = ("text", "json_object", "json_schema")
OUTPUT_KEYS = ("json", "regex", "choice", "grammar", "json_object")
IDLE_OUTPUT_KEYS = (
    "disable_fallback",
    "disable_any_whitespace",
    "disable_additional_properties",
)
"""Keys of `structured_outputs` that choose among valid texts, which the constraint does already."""


def constraint_of(body: DecodingRequest) -> TextConstraint | None:
    """Return the constraint that a body asks for, None without one.

    Raises ApiError (400) for two of them, and for one that is not supported, with the field's name.
    """
    found: dict[str, TextConstraint] = {}
    for param, value in _fields(body):
        try:
            constraint = _constraint(param, value)
        except GrammarError as error:
            raise library_error(error, param) from None
        if constraint is not None:
            found[param] = constraint
    try:
        schema = body.tool_schema
        if schema is not None:
            found["tools"] = json_schema(schema)
    except GrammarError as error:
        raise library_error(error, "tools") from None
    if len(set(found.values())) > 1:
        first, second, *_ = found
        raise ApiError(
            400,
            f"{first} and {second} are two constraints on one answer; leave one of them out",
            param=second,
            code="invalid_value",
        )
    return next(iter(found.values()), None)


def _fields(body: DecodingRequest) -> list[tuple[str, JsonValue]]:
    """Return the fields that are set, those of `structured_outputs` by their path."""
    names = (
        "response_format",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "regex",
        "ebnf",
        "json_schema",
    )
    given: list[tuple[str, JsonValue]] = [(name, getattr(body, name)) for name in names]
    for key, value in (body.structured_outputs or {}).items():
        param = f"structured_outputs.{key}"
        if value is None or (key in IDLE_OUTPUT_KEYS and isinstance(value, bool)):
            continue
        if key not in OUTPUT_KEYS:
            raise ApiError(
                400,
                f"{param} is not supported; use {', '.join(OUTPUT_KEYS)}",
                param=param,
                code="unsupported_parameter",
            )
        given.append((param, value))
    return [(name, value) for name, value in given if value is not None]


def _constraint(param: str, value: JsonValue) -> TextConstraint | None:
    """Return the constraint of one field. Raises GrammarError and ApiError."""
    if param == "response_format":
        return _format(value)
    kind = param.rpartition(".")[2].removeprefix("guided_")
    if kind == "regex":
        return regex(_text(param, value))
    if kind in ("grammar", "ebnf"):
        return ebnf(_text(param, value))
    if kind == "choice":
        if not isinstance(value, list):
            raise _invalid(param, "a list of texts")
        return choice(_text(param, each) for each in value)
    if kind == "json_object":
        if not isinstance(value, bool):
            raise _invalid(param, "true or false")
        return json_object() if value else None
    return json_schema(_schema(param, value))


def _format(value: JsonValue) -> TextConstraint | None:
    """Return the constraint of `response_format`."""
    if not isinstance(value, dict) or value.get("type") not in FORMAT_TYPES:
        raise ApiError(
            400,
            f"response_format.type is not supported here; use {', '.join(FORMAT_TYPES)}",
            param="response_format",
            code="unsupported_parameter",
        )
    if value["type"] != "json_schema":
        others = value.keys() - {"type"}
        if others:
            raise _invalid(
                f"response_format.{sorted(others)[0][:40]}", "left out without json_schema"
            )
        return json_object() if value["type"] == "json_object" else None
    inner = value.get("json_schema")
    unknown = value.keys() - {"type", "json_schema"}
    unknown |= (
        inner.keys() - {"name", "description", "schema", "strict"}
        if isinstance(inner, dict)
        else set()
    )
    if not isinstance(inner, dict) or unknown:
        raise _invalid(
            "response_format", "{type, json_schema: {name, schema, strict, description}}"
        )
    if inner.get("strict") not in (None, True, False):
        raise _invalid("response_format.json_schema.strict", "true or false")
    return json_schema(_schema("response_format.json_schema.schema", inner.get("schema", {})))


def _schema(param: str, value: JsonValue) -> Mapping[str, JsonValue] | bool:
    """Return a schema that is an object, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise _invalid(param, "a JSON schema, or its text") from None
    if not isinstance(value, dict | bool):
        raise _invalid(param, "a JSON schema: an object")
    return value


def _text(param: str, value: JsonValue) -> str:
    if not isinstance(value, str):
        raise _invalid(param, "a text")
    return value


def _invalid(param: str, allowed: str) -> ApiError:
    return ApiError(400, f"{param} must be {allowed}", param=param, code="invalid_value")
