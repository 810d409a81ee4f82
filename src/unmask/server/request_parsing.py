"""Reading and validation of request bodies.

No field is ignored. A field that clients of OpenAI, vLLM or SGLang may send and that has no effect here is
accepted at values that change nothing, and rejected at any other. Any other name is a knob of a decoder or
cache, or an error that suggests the closest name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Set
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import anyio
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json

from unmask import caches, decoders
from unmask.knobs import read_value
from unmask.method import CACHE_PREFIX
from unmask.method import knob_names as knobs_of_decoder
from unmask.sampling.params import SamplingParams
from unmask.server.errors import ApiError
from unmask.server.protocol import OBJECT_KNOB, KnobValue, KnobValues
from unmask.server.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

Body = TypeVar("Body", bound=BaseModel)
NeutralValues = Mapping[str, tuple[JsonValue, ...]]
"""Fields without an effect here, and the values at which they are accepted."""
MAX_ERRORS = 3
MAX_VALUE_CHARS = 80
UNION_BRANCHES = {"str", "int", "float", "bool", "none"}

COMMON_NEUTRAL: NeutralValues = {
    "typical_p": (None, 1),
    "mirostat": (None, 0),
    "bad_words": (None, []),
    "allowed_token_ids": (None,),
    "truncate_prompt_tokens": (None,),
    "return_tokens_as_token_ids": (None, False),
    "return_token_ids": (None, False),
    "documents": (None, []),
    "mm_processor_kwargs": (None, {}),
    "kv_transfer_params": (None,),
    "vllm_xargs": (None, {}),
    "guided_decoding_backend": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "json_schema": (None,),
    "no_repeat_ngram_size": (None, 0),
    "top_a": (None, 0),
    "tfs": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "min_tokens": (None, 0),
    "logit_bias": (None, {}),
    "stop_token_ids": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "use_beam_search": (None, False),
    "early_stopping": (None, False),
    "prompt_logprobs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "response_format": (None, {"type": "text"}),
}
CHAT_NEUTRAL: NeutralValues = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "add_special_tokens": (None, False),
    "chat_template": (None,),
    "echo": (None, False),
}
COMPLETION_NEUTRAL: NeutralValues = {
    "best_of": (None, 1),
    "echo": (None, False),
    "add_special_tokens": (None, True),
}
SGLANG_NEUTRAL: NeutralValues = {
    "lora_path": (None,),
    "return_logprob": (None, False),
    "logprob_start_len": (None, -1),
    "top_logprobs_num": (None, 0),
    "token_ids_logprob": (None, []),
    "return_text_in_logprobs": (None, True, False),
    "return_hidden_states": (None, False),
    "return_routed_experts": (None, False),
    "image_data": (None, []),
    "audio_data": (None, []),
    "video_data": (None, []),
    "session_params": (None,),
    "log_metrics": (None, True),
}
SGLANG_SAMPLING_NEUTRAL: NeutralValues = {
    "min_new_tokens": (None, 0),
    "stop_regex": (None, []),
    "regex": (None,),
    "json_schema": (None,),
    "ebnf": (None,),
    "structural_tag": (None,),
    "no_stop_trim": (None, False),
    "custom_params": (None,),
    "stream_interval": (None, 1),
}


MAX_HINT_CHARS = 1024
TEXT_HINT = (str, f"a text of at most {MAX_HINT_CHARS} characters")
HINTS: Mapping[str, tuple[type, str]] = {
    "prompt_cache_key": TEXT_HINT,
    "prompt_cache_retention": TEXT_HINT,
    "safety_identifier": TEXT_HINT,
    "cache_salt": TEXT_HINT,
    "request_id": TEXT_HINT,
    "rid": TEXT_HINT,
    "service_tier": TEXT_HINT,
    "metadata": (dict, "an object"),
    "store": (bool, "true or false"),
    "priority": (int, "a whole number"),
    "separate_reasoning": (bool, "true or false"),
    "stream_reasoning": (bool, "true or false"),
}
"""Fields that cannot change an answer: the type of their values, also in words; null is accepted."""


@lru_cache(maxsize=1)
def knob_names() -> frozenset[str]:
    """Return the knobs of all decoders, including the sampling parameters."""
    own = {name for decoder in decoders.names() for name in knobs_of_decoder(decoder)}
    return frozenset(own | {field.name for field in dataclasses.fields(SamplingParams)})


@lru_cache(maxsize=1)
def cache_knob_names() -> frozenset[str]:
    """Return the knobs of all caches, as `cache.NAME`."""
    names = {
        field.name
        for cache in caches.names()
        for field in dataclasses.fields(caches.cache_class(cache))
    }
    return frozenset(CACHE_PREFIX + name for name in names)


def parse_body(
    model: type[Body], body: JsonValue, neutral: NeutralValues, *, takes_knobs: bool = True
) -> tuple[Body, dict[str, JsonValue]]:
    """Return a body as a request model, and the knobs at its top level. Raises ApiError (400)."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    known, all_knobs = model.model_fields, knob_names() | cache_knob_names()
    fields: dict[str, JsonValue] = {}
    knobs: dict[str, JsonValue] = {}
    for key, value in body.items():
        if key in known:
            fields[key] = value
        elif key in HINTS:
            check_hint(key, value)
        elif key in neutral:
            check_neutral(key, value, neutral[key])
        elif takes_knobs and key in all_knobs:
            if value is not None:
                knobs[key] = value
        else:
            allowed = {*known, *neutral, *HINTS, *(all_knobs if takes_knobs else ())}
            raise unknown_field(key, allowed, set(known))
    try:
        return model.model_validate(fields), knobs
    except ValidationError as error:
        raise validation_error(error) from None


def check_hint(key: str, value: JsonValue) -> None:
    """Raise ApiError (400) for a hint of another type, or a text that is too long."""
    kind, what = HINTS[key]
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    is_long = isinstance(value, str) and len(value) > MAX_HINT_CHARS
    if value is not None and (not fits or is_long):
        raise ApiError(400, f"{key} must be {what}, or null", param=key, code="invalid_value")


def check_neutral(key: str, value: JsonValue, allowed: tuple[JsonValue, ...]) -> None:
    """Raise ApiError (400) for a value that would have an effect."""
    if any(is_equal(value, other) for other in allowed):
        return
    values = " or ".join(json.dumps(other) for other in allowed if other is not None) or "null"
    raise ApiError(
        400,
        f"{key}={shorten(value)} is not supported by masked diffusion decoding here; allowed is "
        f"{values}, or leave it out",
        param=key,
        code="unsupported_parameter",
    )


def is_equal(value: JsonValue, other: JsonValue) -> bool:
    """Return True for equal values; unlike in Python, true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def shorten(value: object) -> str:
    """Return a value as JSON, cut to `MAX_VALUE_CHARS`; the rest of a long one is never encoded."""
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):
        text += piece
        if len(text) > MAX_VALUE_CHARS:
            return text[: MAX_VALUE_CHARS - 3] + "..."
    return text


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
        values.setdefault(path, "" if isinstance(item["input"], dict) else shorten(item["input"]))
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
    """Return the whole body; reading stops as soon as it is too large. Raises ApiError."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise body_too_large(limits)
    body = bytearray()
    with anyio.move_on_after(limits.body_timeout_s) as scope:
        async for piece in request.stream():
            body += piece
            if len(body) > limits.max_body_bytes:
                raise body_too_large(limits)
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
        f"{param}={text!r} is not of the form name or name(key=value, ...)",
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
