"""A request's body: bounded in bytes and in time, JSON and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from pydantic_core import from_json

from unmask.server.errors import ApiError
from unmask.server.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request


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
