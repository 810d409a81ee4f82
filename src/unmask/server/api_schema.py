"""OpenAPI: the bodies are read by `fields.read`, so their schemas are written in here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

ERRORS = {
    400: "a field that is wrong, unknown or not supported; a prompt that does not fit",
    401: "no valid key",
    404: "another model",
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
        "responses": {
            status: {
                "description": about,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
            for status, about in ERRORS.items()
        },
    }


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
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
