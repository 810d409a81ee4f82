"""OpenAPI: the bodies are read by `fields.read`, so their schemas are written in here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from unmask.server.reply_schema import REPLIES

REFUSED = {
    401: "no valid key",
    403: "without a key: a Host name that is not this server's (`--allowed-host`)",
    431: "too many or too large headers",
}
"""What any route may answer."""
ERRORS = {
    **REFUSED,
    400: "a field that is wrong, unknown or not supported; a prompt that does not fit",
    404: "another model",
    408: "the body did not arrive in time",
    413: "a body that is too large",
    429: "the queue is full; Retry-After says when to come again",
    500: "decoding failed",
    503: "the server is stopping, or its engine has failed",
    504: "not done in time",
}
ENVELOPE = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
KNOBS = (
    "Beside these fields: knobs of the decoder and of every decoder at the top level, the cache's as "
    "`cache.NAME` (see `/v1/schema`); fields of OpenAI and vLLM that have no meaning here, at values "
    "that change nothing. Anything else is refused."
)


def documented(kind: type[BaseModel], summary: str) -> dict[str, Any]:
    """What a route says of itself whose body is `kind`."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "summary": summary,
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        },
        "responses": errors_of(ERRORS),
    }


def errors_of(statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Responses in the envelope."""
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": about, "content": body} for status, about in statuses.items()}


def describe_replies(paths: dict[str, Any]) -> None:
    """Write in what every route answers: its 200, and the refusals that any route may give."""
    for path, methods in paths.items():
        for method, facts in methods.items():
            responses = facts["responses"]
            responses.pop("422", None)  # FastAPI's, for parameters of a wrong type: all are texts
            more = {str(status): said for status, said in errors_of(REFUSED).items()}
            if "{name}" in path:
                more |= {str(k): v for k, v in errors_of({404: ERRORS[404]}).items()}
            if method == "head":
                more = {
                    status: {"description": said["description"]} for status, said in more.items()
                }
                responses["200"].pop("content", None)
                more["503"] = {"description": "nothing is taken"}
            elif path in REPLIES:
                responses["200"]["content"]["application/json"] = {"schema": REPLIES[path]}
            if method == "post":
                responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
            if path == "/health" and method == "get":
                content = {"application/json": {"schema": REPLIES[path]}}
                more["503"] = {"description": "nothing is taken", "content": content}
            facts["responses"] = dict(sorted({**more, **responses}.items()))


def describe_bodies(app: FastAPI, kinds: tuple[type[BaseModel], ...]) -> None:
    """Let the app's OpenAPI hold the schemas that `documented` routes name."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            schemas = made.setdefault("components", {}).setdefault("schemas", {})
            _, defined = models_json_schema(
                [(kind, "validation") for kind in kinds],
                ref_template="#/components/schemas/{model}",
            )
            schemas |= defined["$defs"] | {"Error": ENVELOPE}
            for kind in kinds:
                schemas[kind.__name__].pop("additionalProperties", None)
                schemas[kind.__name__]["description"] = f"{kind.__doc__} {KNOBS}"
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            describe_replies(made["paths"])
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
