"""SGLang's own routes, as its benchmark and its front-end language call them.

`/generate` with cumulative text and `meta_info`, `/get_server_info` and `/server_info` (whose
`avg_spec_accept_length` is the mean number of tokens a forward: with it SGLang's client spreads the time of
a chunk over its tokens), `/get_model_info` and `/model_info`. Source: sglang 0.5.23, `benchmark/serving.py`
and `lang/backend/runtime_endpoint.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, ValidationError

from unmask.errors import PromptError
from unmask.server.errors import ApiError, of_user
from unmask.server.generation import Answer, Generation
from unmask.server.openapi import documented
from unmask.server.protocol import MAX_PROMPTS, Decoding, Seed, Strict, TokenIds, Whole, several
from unmask.server.request_parsing import (
    COMMON_DEFAULTS,
    SGLANG_DEFAULTS,
    SGLANG_SAMPLING_DEFAULTS,
    cache_knob_names,
    check_neutral,
    invalid,
    knob_names,
    read,
    read_json,
    unknown_field,
)
from unmask.server.request_planner import GenerationPlan
from unmask.server.sse import DONE, event, guarded
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.server.service import Service

RENAMED = ("max_new_tokens", "sampling_seed")
OWN = ("decoder", "decoder_args", "preset", "cache", "cache_args", "steps", "block_length")
SAMPLING = frozenset((*RENAMED, *OWN, "temperature", "top_p", "top_k", "stop", "n", "ignore_eos"))
"""Sampling parameters that have a meaning here; knobs of decoders may stand beside them."""


class Sampling(Decoding):
    """`sampling_params`: two of our fields have SGLang's names, in errors too."""

    max_tokens: Whole | None = Field(None, alias="max_new_tokens")
    seed: Seed | None = Field(None, alias="sampling_seed")

    @property
    def length_name(self) -> str:
        """What the client calls `length`."""
        return "max_new_tokens"


class GenerateRequest(Strict):
    """`POST /generate`."""

    text: str | Annotated[list[str], several(min_length=1, max_length=MAX_PROMPTS)] | None = Field(
        None, description="a text or texts; taken as they are"
    )
    input_ids: (
        TokenIds | Annotated[list[TokenIds], several(min_length=1, max_length=MAX_PROMPTS)] | None
    ) = Field(None, description="token ids instead of text")
    sampling_params: dict[str, Any] = Field(
        default_factory=dict,
        description="max_new_tokens, temperature, top_p, top_k, stop, n, ignore_eos, sampling_seed, knobs",
    )
    stream: bool = Field(False, description="cumulative text as server-sent events")
    rid: str | None = Field(None, max_length=128, description="comes back as meta_info.id")

    @property
    def prompts(self) -> list[Any]:
        """The prompts as a list. Raises ApiError unless there is one kind of them."""
        if (self.text is None) == (self.input_ids is None):
            raise ApiError(400, "give either text or input_ids", param="text", code="invalid_value")
        if self.text is not None:
            return [self.text] if isinstance(self.text, str) else list(self.text)
        assert self.input_ids is not None, "one of them is there"
        is_one = isinstance(self.input_ids[0], int)
        return [self.input_ids] if is_one else list(self.input_ids)

    @property
    def is_batch(self) -> bool:
        """Whether several prompts were sent: the reply is a list then."""
        given = self.text if self.text is not None else self.input_ids
        return isinstance(given, list) and not isinstance(given[0], int)


def add_sglang_routes(app: FastAPI, service: Service) -> None:
    """Add them to an app."""

    @app.post("/generate", **documented(GenerateRequest, "SGLang's native route."))
    async def generate(request: Request) -> Response:
        raw = await read_json(request, service.settings.limits)
        arrived_s, timeout_s = time.monotonic(), service.timeout_s(None)
        body, _ = read(GenerateRequest, raw, SGLANG_DEFAULTS, takes_knobs=False)
        service.check_open()
        plans = await service.plan(partial(plans_of, service, body), timeout_s, arrived_s)
        if body.stream and len(plans) > 1:
            raise ApiError(
                400, "stream=true takes one prompt and n=1", param="stream", code="invalid_value"
            )
        call_id = body.rid or f"gen-{secrets.token_hex(12)}"
        call = service.submit(plans, timeout_s, call_id, None, arrived_s)
        if body.stream:
            return service.events(call, guarded(call, cumulative(call)))
        await service.finish(request, call)
        found = [native(call, answer) for answer in call.answers]
        return JSONResponse(found if body.is_batch or len(found) > 1 else found[0])

    async def server_info() -> Response:
        return JSONResponse(info(service))

    async def model_info() -> Response:
        return JSONResponse(
            {
                "model_path": service.llm.name,
                "tokenizer_path": service.llm.name,
                "is_generation": True,
                "preferred_sampling_params": None,
            }
        )

    for path in ("/get_server_info", "/server_info"):
        app.get(path, summary="State of the server, as SGLang tells it.")(server_info)
    for path in ("/get_model_info", "/model_info"):
        app.get(path, summary="The model, as SGLang tells it.")(model_info)


def plans_of(service: Service, body: GenerateRequest) -> list[GenerationPlan]:
    """The plans of a native request. Raises ApiError."""
    decoding, knobs = sampling(body.sampling_params)
    llm, name = service.llm, "input_ids" if body.text is None else "text"
    try:
        ids = [llm.prompt_ids(one, raw=isinstance(one, str)) for one in body.prompts]
    except PromptError as error:
        raise of_user(error, name) from None
    return service.planner.continuations(decoding, ids, knobs, name)


def sampling(given: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """SGLang's sampling parameters as ours, and the knobs among them. Raises ApiError."""
    neutral = {**COMMON_DEFAULTS, **SGLANG_SAMPLING_DEFAULTS}
    all_knobs = knob_names() | cache_knob_names()
    fields: dict[str, Any] = {}
    knobs: dict[str, Any] = {}
    for key, value in given.items():
        if key in SAMPLING:
            fields[key] = value
        elif key in neutral:
            check_neutral(f"sampling_params.{key}", value, neutral[key])
        elif key in all_knobs:
            knobs[key] = value
        else:
            raise unknown_field(key, {*SAMPLING, *neutral, *all_knobs}, set(SAMPLING))
    try:
        return Sampling.model_validate(fields), knobs
    except ValidationError as error:
        raise invalid(error) from None


def native(call: Generation, answer: Answer) -> dict[str, Any]:
    """An answer so far as SGLang tells it; token counts never fall."""
    reason: dict[str, Any] | None = None
    if answer.reason is not None:
        reason = {"type": answer.reason}
        if answer.reason == "length":
            reason["length"] = answer.num_tokens
    return {
        "text": answer.text,
        "output_ids": list(answer.stream.token_ids),
        "meta_info": {
            "id": call.call_id,
            "finish_reason": reason,
            "prompt_tokens": answer.plan.num_prompt,
            "completion_tokens": answer.num_tokens,
            "cached_tokens": answer.num_cached,
            "num_forwards": answer.num_forwards,
            "e2e_latency": call.seconds,
            **answer.method(),
        },
    }


async def cumulative(call: Generation) -> AsyncGenerator[bytes]:
    """All the text so far whenever there is more."""
    async for answer, _, text in call.updates():
        if text or answer.reason is not None:
            yield event(native(call, answer))
    yield DONE


def info(service: Service) -> dict[str, Any]:
    """What SGLang's client reads, and how many requests there are."""
    stats, settings = service.engine.stats, service.settings
    return {
        "model_path": service.llm.name,
        "served_model_name": settings.models[0],
        "version": __version__,
        "context_length": service.planner.max_length,
        "max_running_requests": stats.rows_total,
        "dllm_algorithm": settings.defaults.decoder_name,
        "internal_states": [
            {
                "avg_spec_accept_length": service.metrics.tokens_per_forward,
                "num_running_reqs": stats.running,
                "num_queue_reqs": stats.queued,
            }
        ],
    }
