"""The OpenAPI document: FastAPI's, with the request bodies that the routes read themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from unmask.server.foreign_fields import FOREIGN_FIELDS
from unmask.server.reply_models import ErrorReply, ReplyModel
from unmask.server.request_log import RequestLog
from unmask.server.request_parsing import cache_knob_names, knob_names

Document = dict[str, Any]
REFUSALS = {
    401: "no valid key",
    403: "without a key: a Host name that is not this server's (`--allowed-host`), or, under SGLang's "
    "command with a public `--host`, another machine",
    431: "too many or too large headers",
}
"""Errors of every route."""
ERRORS = {
    **REFUSALS,
    400: "a field that is invalid, unknown or not supported; a prompt that does not fit",
    404: "an unknown model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    429: "the queue is full; Retry-After is the time to wait in seconds",
    500: "decoding failed",
    503: "the server is stopping, or its engine has failed",
    504: "not done within the timeout",
}
"""Errors of routes that decode."""
KNOBS = (
    "In addition to these fields: knobs of the decoder and of every decoder at the top level, knobs of the "
    "cache as `cache.NAME` (see `/v1/schema`); fields of OpenAI and vLLM that have no effect here, at "
    "values that change nothing. Anything else is rejected."
)


def error_responses(statuses: Mapping[int, str]) -> dict[int | str, Document]:
    """Return FastAPI's `responses` for errors in the envelope."""
    # not by "model": FastAPI would document them in the media type of the route's 200
    schema = {"$ref": f"#/components/schemas/{ErrorReply.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in statuses.items()}


class Api(FastAPI):
    """An app whose OpenAPI document contains the bodies of `add_decoding_route` and its events."""

    def __init__(self, **options: Any) -> None:
        super().__init__(responses=error_responses(REFUSALS), **options)
        self._bodies: list[type[BaseModel]] = []
        self._with_knobs: list[type[BaseModel]] = []
        self._replies: list[type[ReplyModel]] = [ErrorReply]

    def add_decoding_route(
        self,
        path: str,
        endpoint: Callable[[Request], Awaitable[Response]],
        *,
        summary: str,
        body: type[BaseModel],
        reply: object,
        event: type[ReplyModel] | None = None,
        last_event: str = "`[DONE]`",
    ) -> None:
        """Add a POST route that reads its `body` itself and answers with a `reply` or with events.

        Without an `event` it decodes nothing: it has no stream, and its body takes no knobs.
        """
        self._bodies.append(body)
        streams: dict[int | str, Document] = {}
        if event is not None:
            self._replies.append(event)
            self._with_knobs.append(body)
            events = {
                "type": "string",
                "description": f"server-sent events: `{event.__name__}` as JSON; the last is {last_event}",
            }
            streams = {200: {"content": {"text/event-stream": {"schema": events}}}}
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        self.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            response_model=reply,
            responses={
                **streams,
                **error_responses(ERRORS),
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                }
            },
        )

    def build_middleware_stack(self) -> ASGIApp:
        """Return the app behind all middleware; the log of requests is the outermost."""
        fields = {name for body in self._bodies for name in body.model_fields}
        names = frozenset(fields | {*FOREIGN_FIELDS, *knob_names(), *cache_knob_names()})
        return RequestLog(super().build_middleware_stack(), names)

    def openapi(self) -> Document:
        """Return the document, made at the first call."""
        if self.openapi_schema is None:
            self.openapi_schema = self._document()
        return self.openapi_schema

    def _document(self) -> Document:
        document = get_openapi(
            title=self.title, version=self.version, summary=self.summary, routes=self.routes
        )
        schemas = document["components"]["schemas"]
        _, models = models_json_schema(
            [
                *((body, "validation") for body in self._bodies),
                *((reply, "serialization") for reply in self._replies),
            ],
            ref_template="#/components/schemas/{model}",
        )
        schemas |= models["$defs"]
        for body in self._bodies:
            schemas[body.__name__].pop("additionalProperties", None)
            knobs = f" {KNOBS}" if body in self._with_knobs else ""
            schemas[body.__name__]["description"] = f"{body.__doc__}{knobs}"
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for methods in document["paths"].values():
            for method, operation in methods.items():
                # FastAPI's for parameters of a wrong type: all of ours are strings
                operation["responses"].pop(str(HTTPStatus.UNPROCESSABLE_ENTITY.value), None)
                if method == "head":
                    for response in operation["responses"].values():
                        response.pop("content", None)
        return document
