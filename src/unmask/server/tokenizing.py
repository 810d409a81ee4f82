"""`/tokenize` and `/detokenize`, as vLLM's clients call them: token ids of a prompt, text of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from unmask.errors import PromptError
from unmask.server.base_models import StrictModel
from unmask.server.errors import ApiError, library_error
from unmask.server.openapi import Api
from unmask.server.protocol import MAX_MESSAGES, Message, TemplateFields, list_limits
from unmask.server.reply_models import Count, ReplyModel, ReplyResponse
from unmask.server.request_parsing import parse_body, read_json

if TYPE_CHECKING:
    from unmask.server.service import Service

Body = TypeVar("Body", bound=StrictModel)


class TokenizeRequest(TemplateFields):
    """`POST /tokenize`."""

    model: str | None = Field(None, max_length=256, description="a served name")
    prompt: str | None = Field(None, description="a text; no template is applied")
    messages: (
        Annotated[list[Message], list_limits(min_length=1, max_length=MAX_MESSAGES)] | None
    ) = Field(None, description="a conversation in place of prompt, put into the chat template")
    add_special_tokens: bool | None = Field(
        None,
        description="the tokenizer's own tokens around the prompt; default: true for prompt, false for "
        "messages, whose template has them",
    )
    return_token_strs: bool | None = Field(None, description="return the tokens as texts too")


class DetokenizeRequest(StrictModel):
    """`POST /detokenize`."""

    model: str | None = Field(None, max_length=256, description="a served name")
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], list_limits()] = Field(
        description="token ids, special ones included"
    )


class TokenizeReply(ReplyModel):
    """The reply of `POST /tokenize`."""

    count: Count
    max_model_len: Count
    tokens: list[Count]
    token_strs: list[str] | None


class DetokenizeReply(ReplyModel):
    """The reply of `POST /detokenize`."""

    prompt: str


def add_tokenizing_routes(app: Api, service: Service) -> None:
    """Add both routes to an app."""

    async def answer(
        request: Request, model: type[Body], make: Callable[[Service, Body], ReplyModel]
    ) -> Response:
        raw = await read_json(request, service.settings.limits)
        body, _ = parse_body(model, raw, takes_knobs=False)
        service.check_model(getattr(body, "model", None))
        make_reply = partial(make, service, body)
        timeout_s = service.timeout_s(None)
        return ReplyResponse(await service.planning.run(make_reply, timeout_s, time.monotonic()))

    async def to_tokens(request: Request) -> Response:
        return await answer(request, TokenizeRequest, tokenize)

    async def to_text(request: Request) -> Response:
        return await answer(request, DetokenizeRequest, detokenize)

    app.add_decoding_route(
        "/tokenize",
        to_tokens,
        summary="Return the token ids of a text or a conversation.",
        body=TokenizeRequest,
        reply=TokenizeReply,
    )
    app.add_decoding_route(
        "/detokenize",
        to_text,
        summary="Return the text of token ids.",
        body=DetokenizeRequest,
        reply=DetokenizeReply,
    )


def tokenize(service: Service, body: TokenizeRequest) -> TokenizeReply:
    """Return the token ids that the decoding routes would use. Raises ApiError."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt", code="invalid_value")
    llm, param = service.llm, "prompt" if body.messages is None else "messages"
    try:
        if body.messages is not None:
            ids = service.planner.conversation_ids(body.messages, body)
            if body.add_special_tokens:
                ids = llm.prompts.with_begin(ids)
        else:
            special = body.add_special_tokens is not False
            ids = llm.prompts.encode(body.prompt or "", special=special)
    except PromptError as error:
        raise library_error(error, param) from None
    strings = None
    if body.return_token_strs:
        assert llm.tokenizer is not None, "create_app refuses a model without one"
        strings = [str(token) for token in llm.tokenizer.convert_ids_to_tokens(ids)]
    return TokenizeReply(
        count=len(ids),
        max_model_len=service.planner.max_length,
        tokens=ids,
        token_strs=strings,
    )


def detokenize(service: Service, body: DetokenizeRequest) -> DetokenizeReply:
    """Return the text of token ids, special tokens included. Raises ApiError."""
    llm = service.llm
    if not body.tokens:
        return DetokenizeReply(prompt="")
    try:
        ids = llm.prompt_ids(body.tokens)
    except PromptError as error:
        raise library_error(error, "tokens") from None
    assert llm.tokenizer is not None, "create_app refuses a model without one"
    return DetokenizeReply(prompt=str(llm.tokenizer.decode(ids, skip_special_tokens=False)))
