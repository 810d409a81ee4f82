"""What an HTTP client is told when something is wrong: OpenAI's envelope, one short message.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unmask.errors import ConfigError, LengthError, UnmaskError

MAX_MESSAGE_CHARS = 1000
"""A longer message is cut: what was sent must not come back multiplied."""

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
    """An answer that is an error: HTTP `status`, what is wrong, and the field it is about."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, Any]:
        """The envelope, bounded and in characters that any log and terminal takes."""
        return {
            "error": {
                "message": clean(self.message, MAX_MESSAGE_CHARS),
                "type": TYPES.get(self.status, "server_error"),
                "param": None if self.param is None else clean(self.param, 100),
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        found: dict[str, str] = {}
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413, 431):
            found["Connection"] = "close"  # the rest of the request is not read
        return found


def clean(text: str, most: int) -> str:
    """`text` on one line, at most `most` characters, nothing in it that is not printable.

    What cannot be printed is written as Python writes it, so a log line or a terminal cannot be forged.
    """
    head = text[: most + 1]
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in head)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def stopping() -> ApiError:
    """The 503 of a server that finishes what it has and takes nothing new."""
    return ApiError(503, "the server is stopping", code="stopping", retry_after_s=5)


def engine_dead() -> ApiError:
    """The 503 of a server that cannot decode any more."""
    return ApiError(503, "the engine has failed; restart the server", code="engine_dead")


def timed_out(timeout_s: float) -> ApiError:
    """The 504."""
    return ApiError(
        504,
        f"not done within {timeout_s:g} s; ask for fewer tokens, or try again later",
        code="timeout",
    )


def of_user(error: UnmaskError, param: str | None = None) -> ApiError:
    """The 400 for a mistake that the engine's own checks found."""
    code = "invalid_value" if isinstance(error, ConfigError) else "invalid_prompt"
    if isinstance(error, LengthError):
        code = "context_length_exceeded"
    if param is None and isinstance(error, ConfigError):
        param = error.key
    return ApiError(400, str(error), param=param, code=code)
