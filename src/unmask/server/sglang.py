"""SGLang's own routes, as its benchmark and its front-end language call them.

`/generate` with cumulative text and `meta_info`, `/get_server_info` and `/server_info`, `/get_model_info`
and `/model_info`. SGLang's client divides the time of a chunk by `avg_spec_accept_length`, here the mean
number of tokens per forward. Source: sglang 0.5.23, `benchmark/serving.py` and
`lang/backend/runtime_endpoint.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field, JsonValue, SkipValidation, ValidationError

from unmask.engine.origin import ModelOrigin
from unmask.engine.outputs import FinishReason
from unmask.errors import PromptError
from unmask.models import BUNDLED
from unmask.server.base_models import StrictModel
from unmask.server.draft_fields import DraftFields
from unmask.server.errors import ApiError, library_error
from unmask.server.foreign_fields import FOREIGN_FIELDS, check_foreign
from unmask.server.generation import Answer, Generation
from unmask.server.openapi import Api
from unmask.server.protocol import (
    MAX_PROMPTS,
    DecodingRequest,
    Seed,
    TokenCount,
    TokenIds,
    list_limits,
)
from unmask.server.reply_models import Count, ReplyModel, ReplyResponse
from unmask.server.request_parsing import (
    cache_knob_names,
    knob_names,
    parse_body,
    read_json,
    unknown_field,
    validation_error,
)
from unmask.server.request_planner import GenerationPlan
from unmask.server.service import GenerationStream, adapter_names
from unmask.server.sse import DONE, event
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.server.service import Service

RENAMED_FIELDS = ("max_new_tokens", "sampling_seed")
METHOD_FIELDS = (
    "decoder",
    "decoder_args",
    "preset",
    "cache",
    "cache_args",
    "steps",
    "block_length",
)
OWN_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "stop_token_ids",
    "n",
    "ignore_eos",
    "regex",
    "json_schema",
    "ebnf",
    *DraftFields.model_fields,
)
SAMPLING_FIELDS = frozenset((*RENAMED_FIELDS, *METHOD_FIELDS, *OWN_FIELDS))
"""Sampling parameters with an effect here; knobs of decoders may stand beside them."""


class SGLangSampling(DecodingRequest):
    """`sampling_params`: two of our fields have SGLang's names, in errors too."""

    max_tokens: TokenCount | None = Field(None, alias="max_new_tokens")
    seed: Seed | None = Field(None, alias="sampling_seed")

    @property
    def length_name(self) -> str:
        """The field that set `length`, for error messages."""
        return "max_new_tokens"


Texts = Annotated[list[str], list_limits(min_length=1, max_length=MAX_PROMPTS)]
TokenIdLists = Annotated[list[TokenIds], list_limits(min_length=1, max_length=MAX_PROMPTS)]


class GenerateRequest(StrictModel):
    """`POST /generate`."""

    text: str | Texts | None = Field(None, description="a text or texts; no template is applied")
    input_ids: TokenIds | TokenIdLists | None = Field(
        None, description="token ids in place of text"
    )
    sampling_params: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="max_new_tokens, temperature, top_p, top_k, stop, stop_token_ids, n, ignore_eos, "
        "sampling_seed, regex, json_schema, ebnf, draft, pinned, max_edits, vllm_xargs, knobs",
    )
    stream: bool = Field(False, description="send cumulative text as server-sent events")
    lora_path: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="name of an adapter; default: the model itself",
    )
    rid: str | None = Field(None, max_length=128, description="returned as meta_info.id")

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts. Raises ApiError unless there are either texts or token ids."""
        if (self.text is None) == (self.input_ids is None):
            raise ApiError(400, "give either text or input_ids", param="text", code="invalid_value")
        if self.text is not None:
            return [self.text] if isinstance(self.text, str) else [*self.text]
        prompts: list[str | list[int]] = []
        ids: list[int] = []
        for item in self.input_ids or ():
            if isinstance(item, int):
                ids.append(item)
            else:
                prompts.append(item)
        return prompts or [ids]

    @property
    def is_batch(self) -> bool:
        """True for a list of prompts, whose reply is a list too."""
        prompts = self.text if self.text is not None else self.input_ids
        return isinstance(prompts, list) and not isinstance(prompts[0], int)


class GenerateFinish(ReplyModel):
    """The finish reason; `length` is the number of tokens if the type is length."""

    type: FinishReason
    length: Count = 0


class MetaInfo(ReplyModel):
    """Counts, times and the decoding method of a `GenerateReply`.

    `knobs`, `model` and `versions`: as in `MethodFields`; null until the answer is complete.
    """

    id: str
    finish_reason: GenerateFinish | None
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count
    num_forwards: Count
    num_draft_forwards: Count
    e2e_latency: float
    decoder: str
    cache: str
    cache_exact: bool
    seed: int
    knobs: SkipValidation[dict[str, object] | None]
    model: SkipValidation[ModelOrigin | None]
    versions: SkipValidation[dict[str, str] | None]


class GenerateReply(ReplyModel):
    """The reply of `POST /generate`, and its events; the text of an event is cumulative."""

    text: str
    output_ids: list[Count]
    meta_info: MetaInfo


class InternalState(ReplyModel):
    """The load of the engine, and its mean number of tokens per forward."""

    avg_spec_accept_length: float | None
    num_running_reqs: Count
    num_queue_reqs: Count


class ServerInfo(ReplyModel):
    """The reply of `GET /server_info`."""

    model_path: str
    served_model_name: str
    version: str
    context_length: Count
    max_running_requests: Count
    dllm_algorithm: str
    internal_states: list[InternalState]


class ServedModelInfo(ReplyModel):
    """The reply of `GET /model_info`."""

    model_path: str
    tokenizer_path: str
    is_generation: Literal[True]
    preferred_sampling_params: None


def add_sglang_routes(app: Api, service: Service) -> None:
    """Add SGLang's routes to an app."""

    async def generate(request: Request) -> Response:
        raw = await read_json(request, service.settings.limits)
        arrived_s, timeout_s = time.monotonic(), service.timeout_s(None)
        body, _ = parse_body(GenerateRequest, raw, takes_knobs=False)
        service.check_open()
        plans = await service.plan(partial(make_plans, service, body), timeout_s, arrived_s)
        if body.stream and len(plans) > 1:
            raise ApiError(
                400, "stream=true takes one prompt and n=1", param="stream", code="invalid_value"
            )
        request_id = body.rid or f"gen-{secrets.token_hex(12)}"
        generation = service.submit(request, plans, timeout_s, request_id, None, arrived_s)
        if body.stream:
            return GenerationStream(service, generation, cumulative_events(generation))
        await service.wait(request, generation)
        replies = [generate_reply(generation, answer) for answer in generation.answers]
        return ReplyResponse(replies if body.is_batch or len(replies) > 1 else replies[0])

    app.add_decoding_route(
        "/generate",
        generate,
        summary="SGLang's native route.",
        body=GenerateRequest,
        reply=GenerateReply | list[GenerateReply],
        event=GenerateReply,
    )
    for path in ("/get_server_info", "/server_info"):

        @app.get(path, summary="The server's state, for SGLang.", response_model=ServerInfo)
        async def get_server_info() -> Response:
            return ReplyResponse(server_info(service))

    for path in ("/get_model_info", "/model_info"):

        @app.get(path, summary="The model, for SGLang.", response_model=ServedModelInfo)
        async def get_model_info() -> Response:
            name = service.llm.name
            return ReplyResponse(
                ServedModelInfo(
                    model_path=name,
                    tokenizer_path=absolute(name),
                    is_generation=True,
                    preferred_sampling_params=None,
                )
            )


def absolute(model: str) -> str:
    """Return the path of a folder, for clients with another working directory; other names unchanged."""
    is_folder = model not in BUNDLED and Path(model).expanduser().is_dir()
    return str(Path(model).expanduser().absolute()) if is_folder else model


def make_plans(service: Service, body: GenerateRequest) -> list[GenerationPlan]:
    """Return the plans of a native request. Raises ApiError."""
    decoding, knobs = parse_sampling(body.sampling_params)
    if body.lora_path is not None:
        decoding = decoding.model_copy(update={"model": check_adapter(service, body.lora_path)})
    llm, name = service.llm, "input_ids" if body.text is None else "text"
    try:
        ids = [llm.prompt_ids(one, raw=isinstance(one, str)) for one in body.prompts()]
    except PromptError as error:
        raise library_error(error, name) from None
    return service.planner.continuations(decoding, ids, knobs, name)


def check_adapter(service: Service, name: str) -> str:
    """Return the name of an adapter. Raises ApiError (400)."""
    names = adapter_names(service.llm)
    if name not in names:
        raise ApiError(
            400,
            f"lora_path={name[:100]!r} is no adapter of this server; it has: {', '.join(names) or 'none'}",
            param="lora_path",
            code="invalid_value",
        )
    return name


def parse_sampling(
    params: dict[str, JsonValue],
) -> tuple[SGLangSampling, dict[str, JsonValue]]:
    """Return SGLang's sampling parameters as a request, and the knobs among them. Raises ApiError."""
    all_knobs = knob_names() | cache_knob_names()
    fields: dict[str, JsonValue] = {}
    knobs: dict[str, JsonValue] = {}
    for key, value in params.items():
        if key in SAMPLING_FIELDS:
            if value is not None:
                fields[key] = value
        elif key in all_knobs:
            if value is not None:
                knobs[key] = value
        elif key in FOREIGN_FIELDS:
            check_foreign(f"sampling_params.{key}", value, FOREIGN_FIELDS[key], params)
        else:
            allowed = {*SAMPLING_FIELDS, *FOREIGN_FIELDS, *all_knobs}
            raise unknown_field(key, allowed, SAMPLING_FIELDS)
    try:
        return SGLangSampling.model_validate(fields), knobs
    except ValidationError as error:
        raise validation_error(error) from None


def generate_reply(generation: Generation, answer: Answer) -> GenerateReply:
    """Return an answer so far; token counts never fall."""
    finish: GenerateFinish | None = None
    if answer.finish_reason == "length":
        finish = GenerateFinish(type="length", length=answer.num_tokens)
    elif answer.finish_reason is not None:
        finish = GenerateFinish(type=answer.finish_reason)
    method, is_complete = answer.method(), answer.finish_reason is not None
    meta = MetaInfo(
        id=generation.request_id,
        finish_reason=finish,
        prompt_tokens=answer.plan.num_prompt,
        completion_tokens=answer.num_tokens,
        cached_tokens=answer.num_cached,
        num_forwards=answer.num_forwards,
        num_draft_forwards=answer.num_draft_forwards,
        e2e_latency=generation.seconds,
        decoder=method.decoder,
        cache=method.cache,
        cache_exact=method.cache_exact,
        seed=method.seed,
        knobs=method.knobs if is_complete else None,
        model=method.model if is_complete else None,
        versions=method.versions if is_complete else None,
    )
    return GenerateReply(text=answer.text, output_ids=answer.stream.token_ids, meta_info=meta)


async def cumulative_events(generation: Generation) -> AsyncGenerator[bytes]:
    """Yield the whole text so far whenever it grows."""
    async for answer, _, text in generation.updates():
        if text or answer.finish_reason is not None:
            yield event(generate_reply(generation, answer))
    yield DONE


def server_info(service: Service) -> ServerInfo:
    """Return the facts that SGLang's client reads, and the load."""
    stats, settings = service.engine.stats, service.settings
    return ServerInfo(
        model_path=service.llm.name,
        served_model_name=settings.models[0],
        version=__version__,
        context_length=service.planner.max_length,
        max_running_requests=stats.rows_total,
        dllm_algorithm=settings.defaults.decoder_name,
        internal_states=[
            InternalState(
                avg_spec_accept_length=service.metrics.tokens_per_forward,
                num_running_reqs=stats.running,
                num_queue_reqs=stats.queued,
            )
        ],
    )
