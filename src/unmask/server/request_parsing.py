"""Reading and validation of request bodies.

No field is ignored; null counts as left out. A field of another server's API that has no effect here is
accepted at values that cannot change an answer (`foreign_fields`), and rejected at any other. Any other
name is a knob of a decoder or cache, or an error that suggests the closest name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Set
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import anyio
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from unmask import caches, decoders
from unmask.knobs import read_value
from unmask.method import CACHE_PREFIX
from unmask.method import knob_names as knobs_of_decoder
from unmask.sampling.params import SamplingParams
from unmask.server.errors import ApiError, upload_broke_off
from unmask.server.foreign_fields import FOREIGN_FIELDS, Harmless, check_foreign, shown
from unmask.server.protocol import OBJECT_KNOB, KnobValue, KnobValues
from unmask.server.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

Body = TypeVar("Body", bound=BaseModel)
MAX_ERRORS = 3
UNION_BRANCHES = {"str", "int", "float", "bool", "none"}


@lru_cache(maxsize=1)
def knob_names() -> frozenset[str]:
    """Return the knobs of all decoders, including the sampling parameters."""
    own = {name for decoder in decoders.served_names() for name in knobs_of_decoder(decoder)}
    return frozenset(own | {field.name for field in dataclasses.fields(SamplingParams)})


@lru_cache(maxsize=1)
def cache_knob_names() -> frozenset[str]:
    """Return the knobs of all caches, as `cache.NAME`."""
    names = {
        field.name
        for cache in caches.served_names()
        for field in dataclasses.fields(caches.cache_class(cache))
    }
    return frozenset(CACHE_PREFIX + name for name in names)


def parse_body(
    model: type[Body],
    body: JsonValue,
    own: Mapping[str, Harmless] | None = None,
    *,
    takes_knobs: bool = True,
) -> tuple[Body, dict[str, JsonValue]]:
    """Return a body as a request model, and the knobs at its top level. Raises ApiError (400).

    `own`: rules of the route for fields of other APIs, beside `FOREIGN_FIELDS`.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    known, rules = model.model_fields, {**FOREIGN_FIELDS, **(own or {})}
    all_knobs = knob_names() | cache_knob_names() if takes_knobs else frozenset[str]()
    fields: dict[str, JsonValue] = {}
    knobs: dict[str, JsonValue] = {}
    for key, value in body.items():
        if key in known:
            if value is not None:
                fields[key] = value
        elif key in all_knobs:
            if value is not None:
                knobs[key] = value
        elif key in rules:
            check_foreign(key, value, rules[key], body)
        else:
            raise unknown_field(key, {*known, *rules, *all_knobs}, set(known))
    try:
        return model.model_validate(fields), knobs
    except ValidationError as error:
        raise validation_error(error) from None


def unknown_field(key: str, allowed: Set[str], listed: Set[str]) -> ApiError:
    """Return the 400 for an unknown field, which lists some names and suggests the closest of all."""
    near = difflib.get_close_matches(key[:100], sorted(allowed), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ApiError(
        400,
        f"unknown field {key[:100]!r}: {hint}fields: {', '.join(sorted(listed))}; and the knobs of the "
        f"decoders (GET /v1/schema)",
        param=key,
        code="unknown_parameter",
    )


def validation_error(error: ValidationError) -> ApiError:
    """Return the 400 for fields of a wrong type or range, which names the first few of them."""
    messages: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        path = field_path(item["loc"])
        text = item["msg"].removeprefix("Value error, ")[:160]
        if text not in messages.setdefault(path, []):
            messages[path].append(text)
        values.setdefault(path, "" if isinstance(item["input"], dict) else shown(item["input"]))
    parts = [
        f"{path}{'=' if values[path] else ''}{values[path]}: {', or: '.join(texts[:MAX_ERRORS])}"
        for path, texts in list(messages.items())[:MAX_ERRORS]
    ]
    num_more = len(messages) - MAX_ERRORS
    if num_more > 0:
        parts.append(f"and {num_more} more")
    first = next(iter(messages))
    return ApiError(400, "; ".join(parts), param=first, code="invalid_value")


def field_path(loc: tuple[int | str, ...]) -> str:
    """Return the dotted path of a field, without pydantic's names for the branches of a union."""
    path = [loc[0]] if loc else []
    for part in loc[1:]:
        is_branch = isinstance(part, str) and (part in UNION_BRANCHES or "[" in part or "-" in part)
        if not is_branch:
            path.append(part if isinstance(part, int) else part[:60])
    return ".".join(str(part)[:60] for part in path) or "body"


async def read_json(request: Request, limits: Limits) -> JsonValue:
    """Return the JSON value of a body. Raises ApiError: 400 not JSON, 408 too slow, 413 too large."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            400,
            f"content-type {media_type or 'missing'!r}: the body must be application/json",
            code="invalid_content_type",
        )
    body = await read_bytes(request, limits)
    try:
        value: JsonValue = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    return value


async def read_bytes(request: Request, limits: Limits) -> bytes:
    """Return the whole body; reading stops as soon as it is too large. Raises ApiError.

    499: the client closed the connection before the end.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise body_too_large(limits)
    body = bytearray()
    with anyio.move_on_after(limits.body_timeout_s) as scope:
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > limits.max_body_bytes:
                    raise body_too_large(limits)
        except ClientDisconnect:
            raise upload_broke_off() from None
    if scope.cancelled_caught:
        raise ApiError(
            408, f"the body did not arrive within {limits.body_timeout_s:g} s", code="body_timeout"
        )
    return bytes(body)


def body_too_large(limits: Limits) -> ApiError:
    """Return the 413."""
    return ApiError(
        413, f"the body is larger than {limits.max_body_bytes} bytes", code="body_too_large"
    )


METHOD_TEXT = re.compile(r"[\w .,:()=\[\]/+-]*")
LONG_NUMBER = re.compile(r"\d{19}")
MAX_BRACKETS = 8
KNOB_VALUES = TypeAdapter[dict[str, KnobValue]](KnobValues)


def check_method_text(param: str, text: str) -> None:
    """Raise ApiError for a decoder or cache that is not of the form `name(key=value, ...)`."""
    num_brackets = text.count("(") + text.count("[")
    if (
        METHOD_TEXT.fullmatch(text)
        and not LONG_NUMBER.search(text)
        and num_brackets <= MAX_BRACKETS
    ):
        return
    raise ApiError(
        400,
        f"{param}={shown(text)} is not of the form name or name(key=value, ...)",
        param=param,
        code="invalid_value",
    )


def check_knobs(values: Mapping[str, object]) -> None:
    """Raise ApiError for a value that is not a JSON boolean, number, string or flat list of them.

    A number in quotes is rejected. The value of `constraints` is an object, or any text.
    """
    try:
        KNOB_VALUES.validate_python(dict(values), strict=True)
    except ValidationError as error:
        item = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(item["loc"][0]) if item["loc"] else None
        what = f"{name}: a knob is true or false, a number, a name, or a list of them"
        message = item["msg"].removeprefix("Value error, ") if name is None else what
        raise ApiError(400, message, param=name, code="invalid_value") from None
    for key, value in values.items():
        if key == OBJECT_KNOB:
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_method_text(key, text)
                if text and not isinstance(read_value(text), str):
                    raise ApiError(
                        400,
                        f"{key}={text!r} must be {text} without quotes",
                        param=key,
                        code="invalid_value",
                    )
