"""OpenAPI: what the routes answer. No reply has a field that is not here."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOL: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ANY: Schema = {"type": "object"}


def record(fields: Schema, optional: Schema | None = None) -> Schema:
    """An object of exactly these fields."""
    return {
        "type": "object",
        "required": list(fields),
        "properties": fields | (optional or {}),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def maybe(kind: Schema) -> Schema:
    """It, or null."""
    return {"anyOf": [kind, NULL]}


def one_of(*values: str) -> Schema:
    """One of these texts."""
    return {"type": "string", "enum": list(values)}


METHOD = {"decoder": TEXT, "cache": TEXT, "cache_exact": BOOL, "seed": WHOLE}
USAGE = record(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "num_forwards": COUNT,
        "prompt_tokens_details": record({"cached_tokens": COUNT}),
        "tokens_per_forward": NUMBER,
        "num_queries": COUNT,
        "num_wasted": COUNT,
    }
)
CHAT_LOGPROBS = record(
    {
        "content": listed(
            record(
                {
                    "token": TEXT,
                    "logprob": maybe(NUMBER),
                    "bytes": maybe(listed(COUNT)),
                    "top_logprobs": {"type": "array", "maxItems": 0},
                }
            )
        ),
        "refusal": NULL,
    }
)
TEXT_LOGPROBS = record(
    {
        "tokens": listed(TEXT),
        "token_logprobs": listed(maybe(NUMBER)),
        "top_logprobs": NULL,
        "text_offset": listed(COUNT),
    }
)
MESSAGE = record({"role": one_of("assistant"), "content": TEXT, "refusal": NULL})


def reply(kind: str, choice: Schema, logprobs: Schema) -> Schema:
    """The body of a route of OpenAI's shape whose choices have the fields of `choice`."""
    ending = {"finish_reason": one_of("stop", "length"), "logprobs": maybe(logprobs)}
    choices = listed(record({"index": COUNT, **choice, **ending}, {"trace": listed(ANY)}))
    head = {"id": TEXT, "object": one_of(kind), "created": COUNT, "model": TEXT}
    return record(
        {
            **head,
            "system_fingerprint": TEXT,
            "choices": choices,
            "usage": USAGE,
            "unmask": record(METHOD),
        }
    )


GENERATED = record(
    {
        "text": TEXT,
        "output_ids": listed(COUNT),
        "meta_info": record(
            {
                "id": TEXT,
                "finish_reason": record({"type": one_of("stop", "length")}, {"length": COUNT}),
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "cached_tokens": COUNT,
                "num_forwards": COUNT,
                "e2e_latency": NUMBER,
                **METHOD,
            }
        ),
    }
)
CARD = record(
    {
        "id": TEXT,
        "object": one_of("model"),
        "created": COUNT,
        "owned_by": TEXT,
        "root": TEXT,
        "max_model_len": COUNT,
    }
)
SERVER = record(
    {
        "model_path": TEXT,
        "served_model_name": TEXT,
        "version": TEXT,
        "context_length": COUNT,
        "max_running_requests": COUNT,
        "dllm_algorithm": TEXT,
        "internal_states": listed(
            record(
                {
                    "avg_spec_accept_length": maybe(NUMBER),
                    "num_running_reqs": COUNT,
                    "num_queue_reqs": COUNT,
                }
            )
        ),
    }
)
MODEL = record(
    {
        "model_path": TEXT,
        "tokenizer_path": TEXT,
        "is_generation": BOOL,
        "preferred_sampling_params": NULL,
    }
)
HEALTH = record({"status": one_of("ok", "draining", "failed")})
KNOBS = record(
    {
        "model": ANY,
        "defaults": ANY,
        "decoders": listed(ANY),
        "caches": listed(ANY),
        "shared": listed(ANY),
    }
)
REPLIES: dict[str, Schema] = {
    "/v1/chat/completions": reply("chat.completion", {"message": MESSAGE}, CHAT_LOGPROBS),
    "/v1/completions": reply("text_completion", {"text": TEXT}, TEXT_LOGPROBS),
    "/v1/infill": reply("infill", {"text": TEXT, "blanks": listed(TEXT)}, TEXT_LOGPROBS),
    "/generate": {"anyOf": [GENERATED, listed(GENERATED)]},
    "/server_info": SERVER,
    "/get_server_info": SERVER,
    "/model_info": MODEL,
    "/get_model_info": MODEL,
    "/v1/models": record({"object": one_of("list"), "data": listed(CARD)}),
    "/v1/models/{name}": CARD,
    "/v1/schema": KNOBS,
    "/health": HEALTH,
}
"""The body of a route's 200, by its path in the document."""
