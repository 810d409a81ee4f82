"""HTTP errors: a status, and a short message in the OpenAI API's envelope.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from unmask.errors import ConfigError, ContractError, LengthError, UnmaskError, cut_text
from unmask.plain_text import escaped
from unmask.server.reply_models import ErrorFields, ErrorReply, ReplyResponse

log = logging.getLogger("unmask.server")

TOO_MANY = "too_many_connections"
FAILED = "decoding this request failed; the log has the reason"
MAX_MESSAGE_CHARS = 1000
"""Longer messages are cut, so that a reply cannot be many times the size of its request."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass
class ApiError(Exception):
    """An HTTP error: its `status`, a message, and the field that `param` names."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> ErrorReply:
        """Return the envelope, bounded in size and free of control characters."""
        error = ErrorFields(
            message=sanitize(self.message, MAX_MESSAGE_CHARS),
            type=TYPES.get(self.status, "server_error"),
            param=None if self.param is None else sanitize(self.param, 100),
            code=self.code,
        )
        return ErrorReply(error=error)

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the status."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413, 431) or self.code == TOO_MANY:
            headers["Connection"] = "close"  # the rest of the request is not read
        return headers

    def response(self, headers: dict[str, str] | None = None) -> ReplyResponse:
        """Return the response; `headers` in place of those of the status."""
        return ReplyResponse(self.body(), self.status, headers or self.headers())


def sanitize(text: str, max_chars: int) -> str:
    """Return `text` on one line of printable characters, cut to `max_chars`.

    Other characters are escaped as Python escapes them, so that log lines and terminal output cannot be
    forged.
    """
    head = text[: max_chars + 1]
    return cut_text(escaped(head), max_chars)


def server_stopping() -> ApiError:
    """Return the 503 of a server that finishes its requests and accepts no new ones."""
    return ApiError(503, "the server is stopping", code="stopping", retry_after_s=5)


def too_many_connections() -> ApiError:
    """Return the 503 of a connection for which only the reserve had a place."""
    return ApiError(
        503, "too many connections are open; try again later", code=TOO_MANY, retry_after_s=1
    )


def unexpected() -> ApiError:
    """Return the 500 that does not reveal an unexpected error."""
    return ApiError(500, "the server failed; the log has the reason", code="internal_error")


def upload_broke_off() -> ApiError:
    """Return the error of a client that has closed its connection before its request was complete."""
    return ApiError(499, "the client disconnected during the upload", code="upload_broke_off")


def disconnected() -> ApiError:
    """Return the error of a client that has closed its connection, which is counted, not sent."""
    return ApiError(499, "the client disconnected", code="disconnected")


def engine_dead() -> ApiError:
    """Return the 503 of a server whose engine has failed."""
    return ApiError(503, "the engine has failed; restart the server", code="engine_dead")


def timed_out(timeout_s: float) -> ApiError:
    """Return the 504 of a request that took longer than `timeout_s`."""
    return ApiError(
        504,
        f"not done within {timeout_s:g} s; ask for fewer tokens, or try again later",
        code="timeout",
    )


def failed(error: BaseException | None, request_id: str = "a request:") -> ApiError:
    """Log an error that is not the client's, and return the 500 that does not reveal it."""
    log.error("%s decoding failed", request_id, exc_info=error)
    return ApiError(500, FAILED, code="failed")


def library_error(error: UnmaskError, param: str | None = None) -> ApiError:
    """Return the reply to an error of the library; `param` is the field that it refers to.

    That is a 400 that tells a user's mistake, and a 500 for a plug-in that broke its contract.
    """
    if isinstance(error, ContractError):
        return failed(error)
    code = "invalid_value" if isinstance(error, ConfigError) else "invalid_prompt"
    if isinstance(error, LengthError):
        code = "context_length_exceeded"
    if param is None and isinstance(error, ConfigError):
        param = error.key
    return ApiError(400, str(error), param=param, code=code)
