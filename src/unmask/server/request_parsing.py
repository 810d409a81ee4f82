"""The fields of a request's body: which exist, which are knobs, which only have their default.

Nothing is ignored. A field that a client of OpenAI, vLLM or SGLang may send, and that has no meaning here,
is taken at the value that changes nothing and refused at any other. Any other name is a knob of some
decoder, or an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from unmask import caches, decoders
from unmask.method import CACHE_PREFIX
from unmask.method import knob_names as knobs_of_decoder
from unmask.sampling.params import SamplingParams
from unmask.server.errors import ApiError
from unmask.server.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request


import re
from collections.abc import Mapping

from pydantic import TypeAdapter

from unmask.knobs import read_value
from unmask.server.protocol import Arguments

Body = TypeVar("Body", bound=BaseModel)
MAX_ERRORS = 3
MAX_VALUE_CHARS = 80
BRANCHES = {"str", "int", "float", "bool", "none"}

COMMON_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "min_p": (None, 0),
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
    "priority": (None, 0),
    "service_tier": (None, "auto", "default"),
}
CHAT_DEFAULTS: dict[str, tuple[Any, ...]] = {
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
    "store": (None, False),
    "metadata": (None, {}),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "add_special_tokens": (None, False),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "echo": (None, False),
}
COMPLETION_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "add_special_tokens": (None, True),
}
SGLANG_DEFAULTS: dict[str, tuple[Any, ...]] = {
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
    "priority": (None, 0),
}
SGLANG_SAMPLING_DEFAULTS: dict[str, tuple[Any, ...]] = {
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
"""Field -> the values that change nothing."""


@lru_cache(maxsize=1)
def knob_names() -> frozenset[str]:
    """Every knob of every decoder, and those that all have."""
    own = {name for decoder in decoders.names() for name in knobs_of_decoder(decoder)}
    return frozenset(own | {field.name for field in dataclasses.fields(SamplingParams)})


@lru_cache(maxsize=1)
def cache_knob_names() -> frozenset[str]:
    """Every knob of every cache, as `cache.NAME`."""
    found = {
        f.name for name in caches.names() for f in dataclasses.fields(caches.cache_class(name))
    }
    return frozenset(CACHE_PREFIX + name for name in found)


def read(
    kind: type[Body], body: Any, neutral: dict[str, tuple[Any, ...]], *, takes_knobs: bool = True
) -> tuple[Body, dict[str, Any]]:
    """A body as the request it is, and the knobs at its top level.

    `neutral`: fields without a meaning here and the values that change nothing. Raises ApiError (400).
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    known, all_knobs = kind.model_fields, knob_names() | cache_knob_names()
    fields: dict[str, Any] = {}
    knobs: dict[str, Any] = {}
    for key, value in body.items():
        if key in known:
            fields[key] = value
        elif key in neutral:
            check_neutral(key, value, neutral[key])
        elif takes_knobs and key in all_knobs:
            if value is not None:
                knobs[key] = value
        else:
            allowed = {*known, *neutral, *(all_knobs if takes_knobs else ())}
            raise unknown_field(key, allowed, set(known))
    try:
        return kind.model_validate(fields), knobs
    except ValidationError as error:
        raise invalid(error) from None


def check_neutral(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise ApiError for a value that would have to change something."""
    if any(is_same(value, one) for one in allowed):
        return
    listed = " or ".join(json.dumps(one) for one in allowed if one is not None) or "null"
    raise ApiError(
        400,
        f"{key}={brief(value)} is not supported: masked diffusion decoding has nothing for it here; "
        f"allowed is {listed}, or leave it out",
        param=key,
        code="unsupported_parameter",
    )


def is_same(value: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def brief(value: Any) -> str:
    """A value as JSON, cut to what a message can hold; what is cut off is not written at all."""
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value):
        text += piece
        if len(text) > MAX_VALUE_CHARS:
            return text[: MAX_VALUE_CHARS - 3] + "..."
    return text


def unknown_field(key: str, allowed: set[str], listed: set[str]) -> ApiError:
    """The 400 for a field that does not exist."""
    near = difflib.get_close_matches(key[:100], sorted(allowed), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ApiError(
        400,
        f"unknown field {key[:100]!r}: {hint}fields: {', '.join(sorted(listed))}; and the knobs of the "
        f"decoders (GET /v1/schema)",
        param=key,
        code="unknown_parameter",
    )


def invalid(error: ValidationError) -> ApiError:
    """The 400 for fields of a wrong type or range, the first few of them by name."""
    said: dict[str, list[str]] = {}
    shown: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=False):
        where = field_path(item["loc"])
        text = item["msg"].removeprefix("Value error, ")[:160]
        if text not in said.setdefault(where, []):
            said[where].append(text)
        shown.setdefault(where, "" if isinstance(item["input"], dict) else brief(item["input"]))
    parts = [
        f"{where}{'=' if shown[where] else ''}{shown[where]}: {', or: '.join(texts[:MAX_ERRORS])}"
        for where, texts in list(said.items())[:MAX_ERRORS]
    ]
    more = len(said) - MAX_ERRORS
    if more > 0:
        parts.append(f"and {more} more")
    first = next(iter(said))
    return ApiError(400, "; ".join(parts), param=first, code="invalid_value")


def field_path(loc: tuple[int | str, ...]) -> str:
    """Where a field is; the names that pydantic gives to the branches of a union are left out."""
    kept = [loc[0]] if loc else []
    for part in loc[1:]:
        branch = isinstance(part, str) and (part in BRANCHES or "[" in part or "-" in part)
        if not branch:
            kept.append(part if isinstance(part, int) else part[:60])
    return ".".join(str(part)[:60] for part in kept) or "body"


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as a value. Raises ApiError: 400 no JSON, 408 too slow, 413 too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            400,
            f"content-type {kind or 'missing'!r}: the body must be application/json",
            code="invalid_content_type",
        )
    body = await read_bytes(request, limits)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


async def read_bytes(request: Request, limits: Limits) -> bytes:
    """The whole body; one that is too large is not read to its end."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise too_large(limits)
    found = bytearray()
    with anyio.move_on_after(limits.body_timeout_s) as scope:
        async for piece in request.stream():
            found += piece
            if len(found) > limits.max_body_bytes:
                raise too_large(limits)
    if scope.cancelled_caught:
        raise ApiError(
            408, f"the body was not there within {limits.body_timeout_s:g} s", code="body_timeout"
        )
    return bytes(found)


def too_large(limits: Limits) -> ApiError:
    """The 413."""
    return ApiError(
        413, f"the body is larger than {limits.max_body_bytes} bytes", code="body_too_large"
    )


NAME = re.compile(r"[\w .,:()=\[\]/+-]*")
LONG_NUMBER = re.compile(r"\d{19}")
MAX_BRACKETS = 8
ARGUMENTS = TypeAdapter[Any](Arguments)


def check_method_text(param: str, text: str) -> None:
    """Raise ApiError for a decoder or cache that is not of the form `name(key=value, ...)`."""
    brackets = text.count("(") + text.count("[")
    if NAME.fullmatch(text) and not LONG_NUMBER.search(text) and brackets <= MAX_BRACKETS:
        return
    raise ApiError(
        400,
        f"{param}={text!r} is not of the form name or name(key=value, ...)",
        param=param,
        code="invalid_value",
    )


def check_knobs(values: Mapping[str, Any]) -> None:
    """Raise ApiError for a value that is not JSON's true, number, text or flat list of them.

    A number in quotes is refused: it is no text.
    """
    try:
        ARGUMENTS.validate_python(dict(values), strict=True)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0])
        raise ApiError(
            400,
            f"{where}: a knob is true or false, a number, a name, or a list of them",
            param=where,
            code="invalid_value",
        ) from None
    for key, value in values.items():
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
