"""`POST /v1/responses`: a conversation in the form of the OpenAI API's Responses, planned as a chat."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response as HttpResponse
from pydantic import JsonValue

from unmask.server.errors import ApiError
from unmask.server.foreign_fields import Harmless, only
from unmask.server.generation import Answer, Generation
from unmask.server.openapi import Api
from unmask.server.protocol import MAX_MESSAGES, ChatRequest
from unmask.server.reply_models import ReplyResponse, encode
from unmask.server.request_parsing import parse_body, read_json
from unmask.server.request_planner import GenerationPlan, Planner
from unmask.server.response_models import (
    NO_TRACE,
    ONE_ANSWER,
    ONLY_TEXT_EVENTS,
    EventFields,
    EventType,
    FormatFields,
    IncompleteDetails,
    InputDetails,
    ItemStatus,
    OutputDetails,
    OutputMessage,
    OutputText,
    Response,
    ResponseEvent,
    ResponseFailure,
    ResponseRequest,
    ResponseStatus,
    ResponseUsage,
)
from unmask.server.responses import usage
from unmask.server.service import GenerationStream

if TYPE_CHECKING:
    from unmask.server.service import Service

OWN_FIELDS = frozenset(ResponseRequest.model_fields) - frozenset(ChatRequest.model_fields)
STATUS: dict[str, ResponseStatus] = {"stop": "completed", "length": "incomplete"}
RESPONSE_FIELDS: Mapping[str, Harmless] = {
    "include": only([], ["reasoning.encrypted_content"]),
    "top_logprobs": only(0),
}


def add_response_route(app: Api, service: Service) -> None:
    """Add the route to an app."""

    async def respond(request: Request) -> HttpResponse:
        raw = await read_json(request, service.settings.limits)
        arrived_s = time.monotonic()
        body, knobs = parse_body(ResponseRequest, raw, RESPONSE_FIELDS)
        check_response_fields(body)
        name = service.check_model(body.model)
        service.check_open()
        timeout_s = service.timeout_s(body.timeout_s)
        make_plans = partial(plan_response, service.planner, body, knobs)
        plans = await service.plan(make_plans, timeout_s, arrived_s)
        reply = ResponseBuilder(body, name)
        generation = service.submit(request, plans, timeout_s, reply.id, body.user, arrived_s)
        if body.stream:
            return GenerationStream(service, generation, response_events(generation, reply))
        await service.wait(request, generation)
        return ReplyResponse(reply.response(generation.answers))

    app.add_decoding_route(
        "/v1/responses",
        respond,
        summary="Generate the next turn of a conversation (OpenAI's Responses).",
        body=ResponseRequest,
        reply=Response,
        event=ResponseEvent,
        last_event="`response.completed`, `response.incomplete` or `response.failed`",
    )


def check_response_fields(body: ResponseRequest) -> None:
    """Raise ApiError (400) for fields of other routes that a response has no place for."""
    refused = {
        "n": (body.choices > 1, ONE_ANSWER),
        "stream_mode": (body.wants_canvas, ONLY_TEXT_EVENTS),
        "return_trace": (body.return_trace, NO_TRACE),
        "trace_header": (body.trace_header, NO_TRACE),
        "trace_alternatives": (body.trace_alternatives > 0, NO_TRACE),
        "return_step_map": (body.return_step_map, NO_TRACE),
    }
    for param, (is_refused, reason) in refused.items():
        if is_refused:
            raise ApiError(
                400,
                f"{param}={getattr(body, param)!r}: {reason}; leave it out, or use /v1/chat/completions",
                param=param,
                code="unsupported_parameter",
            )


def plan_response(
    planner: Planner, body: ResponseRequest, knobs: Mapping[str, JsonValue]
) -> list[GenerationPlan]:
    """Return the plan of the chat request that a response stands for. Raises ApiError."""
    given = {key: getattr(body, key) for key in body.model_fields_set - OWN_FIELDS}
    form = body.text.format if body.text is not None else None
    if form is not None and form.type != "text":
        if body.response_format is not None:
            raise ApiError(
                400,
                "response_format and text.format are two constraints on one answer; leave out the first",
                param="response_format",
                code="invalid_value",
            )
        given["response_format"] = form.as_response_format()
    turns = body.messages()
    if len(turns) > MAX_MESSAGES:
        raise ApiError(
            400,
            f"input and instructions are {len(turns)} messages; at most {MAX_MESSAGES} are allowed",
            param="input",
            code="invalid_value",
        )
    kind = FormatChat if form is not None and form.type != "text" else ResponseChat
    chat = kind.model_validate({**given, "messages": turns, "max_tokens": body.max_output_tokens})
    return renamed(planner, chat, knobs)


def format_fields(body: ResponseRequest) -> FormatFields:
    """Return the format of a response's text, as the client gave it."""
    form = body.text.format if body.text is not None else None
    if form is None:
        return {"type": "text"}
    fields: FormatFields = {"type": form.type}
    if form.schema_ is not None:
        fields["name"], fields["schema"] = form.name or "answer", form.schema_
        fields["strict"] = form.strict is not False
    if form.description is not None:
        fields["description"] = form.description
    return fields


class ResponseChat(ChatRequest):
    """The chat request that a response stands for; errors name the field that the client sent."""

    @property
    def length_name(self) -> str:
        """The field that set `length`, for error messages."""
        return "max_output_tokens"


class FormatChat(ResponseChat):
    """The chat request of a response with `text.format`."""

    @property
    def format_name(self) -> str:
        """The field that set `response_format`, for error messages."""
        return "text.format"


def renamed(
    planner: Planner, chat: ChatRequest, knobs: Mapping[str, JsonValue]
) -> list[GenerationPlan]:
    """Return the plan of a chat request whose messages the client knows as `input`. Raises ApiError."""
    try:
        return planner.chat(chat, knobs)
    except ApiError as error:
        if error.param == "messages":
            error.param = "input"
        raise


class ResponseBuilder:
    """Builds the response object of one request, at every point of its life."""

    def __init__(self, body: ResponseRequest, model: str) -> None:
        self.body, self.model, self.created = body, model, int(time.time())
        suffix = secrets.token_hex(12)
        self.id, self.item_id = f"resp_{suffix}", f"msg_{suffix}"

    def response(
        self, answers: Sequence[Answer] = (), failure: ResponseFailure | None = None
    ) -> Response:
        """Return the response: complete with its one answer, failed, or else in progress."""
        status: ResponseStatus = "in_progress" if failure is None else "failed"
        if answers:
            status = STATUS[str(answers[0].finish_reason)]
        details = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        body = self.body
        response = Response(
            id=self.id,
            object="response",
            created_at=self.created,
            status=status,
            error=failure,
            incomplete_details=details,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self.model,
            output=[self.item(answers[0])] if answers else [],
            parallel_tool_calls=True,
            previous_response_id=None,
            temperature=body.temperature,
            top_p=body.top_p,
            tool_choice="auto",
            tools=[],
            text={"format": format_fields(self.body)},
            truncation="disabled",
            background=False,
            store=False,
            metadata=body.metadata or {},
            usage=response_usage(answers) if answers else None,
        )
        if not answers:
            return response
        return response.model_copy(update={"unmask": answers[0].method()})

    def item(self, answer: Answer | None) -> OutputMessage:
        """Return the output item: empty and in progress without an answer."""
        status: ItemStatus = "in_progress"
        if answer is not None:
            status = "completed" if answer.finish_reason == "stop" else "incomplete"
        return OutputMessage(
            id=self.item_id,
            type="message",
            role="assistant",
            status=status,
            content=[] if answer is None else [text_part(answer.text)],
        )


def text_part(text: str) -> OutputText:
    """Return the content of an output item."""
    return OutputText(type="output_text", text=text, annotations=[], logprobs=[])


def response_usage(answers: Sequence[Answer]) -> ResponseUsage:
    """Return the usage under the names of this route."""
    counts = usage(answers)
    cached = counts.prompt_tokens_details.cached_tokens
    return ResponseUsage(
        input_tokens=counts.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=cached, cache_write_tokens=0),
        output_tokens=counts.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=0),
        total_tokens=counts.total_tokens,
        num_forwards=counts.num_forwards,
        tokens_per_forward=counts.tokens_per_forward,
        num_queries=counts.num_queries,
        num_wasted=counts.num_wasted,
        num_draft_forwards=counts.num_draft_forwards,
        num_draft_queries=counts.num_draft_queries,
    )


async def response_events(generation: Generation, reply: ResponseBuilder) -> AsyncGenerator[bytes]:
    """Yield the typed events of a response, numbered from 0. An ApiError becomes the last two of them."""
    number = 0

    def event(kind: EventType, fields: EventFields) -> bytes:
        nonlocal number
        body = ResponseEvent(type=kind, sequence_number=number, **fields)
        number += 1
        return f"event: {kind}\ndata: ".encode() + encode(body) + b"\n\n"

    place: EventFields = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}
    yield event("response.created", {"response": reply.response()})
    yield event("response.in_progress", {"response": reply.response()})
    yield event("response.output_item.added", {"output_index": 0, "item": reply.item(None)})
    yield event("response.content_part.added", {**place, "part": text_part("")})
    try:
        async for _, _, text in generation.updates():
            if text:
                yield event("response.output_text.delta", {**place, "delta": text, "logprobs": []})
    except ApiError as error:
        generation.error = error
        told = error.body().error
        yield event("error", {"code": told.code, "message": told.message, "param": told.param})
        failure = ResponseFailure(code="server_error", message=told.message)
        yield event("response.failed", {"response": reply.response(failure=failure)})
        return
    (answer,) = generation.answers
    yield event("response.output_text.done", {**place, "text": answer.text, "logprobs": []})
    yield event("response.content_part.done", {**place, "part": text_part(answer.text)})
    yield event("response.output_item.done", {"output_index": 0, "item": reply.item(answer)})
    response = reply.response(generation.answers)
    last: EventType = (
        "response.completed" if response.status == "completed" else "response.incomplete"
    )
    yield event(last, {"response": response})
