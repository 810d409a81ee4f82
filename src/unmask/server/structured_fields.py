"""Fields by which clients ask for structured output, in the spellings of OpenAI, vLLM and SGLang."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

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


class ConstraintField(NamedTuple):
    """A constraint, and the field in which the client gave it."""

    param: str
    constraint: TextConstraint


def constraint_of(body: DecodingRequest) -> ConstraintField | None:
    """Return the constraint that a body asks for, None without one.

    Raises ApiError (400) for two of them, for one that is not supported, and for stop strings, which could
    cut its texts, with the field's name.
    """
    found: dict[str, TextConstraint] = {}
    for param, value in _fields(body):
        try:
            constraint = (
                _format(param, value) if param == body.format_name else _constraint(param, value)
            )
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
    for param, constraint in found.items():
        if body.stops:
            raise ApiError(
                400,
                f"stop could cut the answer, which has to meet {param} as a whole; leave one of them out",
                param="stop",
                code="invalid_value",
            )
        return ConstraintField(param, constraint)
    return None


def _fields(body: DecodingRequest) -> list[tuple[str, JsonValue]]:
    """Return the fields that are set, those of `structured_outputs` by their path."""
    names = (
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "regex",
        "ebnf",
        "json_schema",
    )
    given: list[tuple[str, JsonValue]] = [(body.format_name, body.response_format)]
    given += [(name, getattr(body, name)) for name in names]
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
    kind = param.rpartition(".")[2].removeprefix("guided_")
    if kind == "regex":
        return regex(_text(param, value))
    if kind in ("grammar", "ebnf"):
        return ebnf(_text(param, value))
    if kind == "choice":
        if not isinstance(value, list):
            raise _invalid(param, "a list of texts")
        return choice([_text(param, each) for each in value])
    if kind == "json_object":
        if not isinstance(value, bool):
            raise _invalid(param, "true or false")
        return json_object() if value else None
    return json_schema(_schema(param, value))


def _format(param: str, value: JsonValue) -> TextConstraint | None:
    """Return the constraint of `response_format`, in which null counts as left out."""
    if not isinstance(value, dict) or value.get("type") not in FORMAT_TYPES:
        raise ApiError(
            400,
            f"{param}.type is not supported here; use {', '.join(FORMAT_TYPES)}",
            param=param,
            code="unsupported_parameter",
        )
    others = {key for key in value.keys() - {"type"} if value[key] is not None}
    if value["type"] != "json_schema":
        if others:
            raise _invalid(f"{param}.{sorted(others)[0][:40]}", "left out without json_schema")
        return json_object() if value["type"] == "json_object" else None
    inner = value.get("json_schema")
    fields = {k: v for k, v in inner.items() if v is not None} if isinstance(inner, dict) else {}
    unknown = others - {"json_schema"} | fields.keys() - {"name", "description", "schema", "strict"}
    if not isinstance(inner, dict) or unknown:
        raise _invalid(param, "{type, json_schema: {name, schema, strict, description}}")
    if fields.get("strict") not in (None, True, False):
        raise _invalid(f"{param}.json_schema.strict", "true or false")
    return json_schema(_schema(f"{param}.json_schema.schema", fields.get("schema", {})))


def _schema(param: str, value: JsonValue) -> Mapping[str, JsonValue] | bool:
    """Return a schema that is an object, or its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _invalid(param, "of whole characters; it has a lone surrogate") from None
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
