"""The id of a request, which every reply returns, and the log line of every request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unmask.engine.threads import ErrorCapture
from unmask.server.errors import TYPES, ApiError, log, sanitize, unexpected
from unmask.server.logs import FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ID_HEADER = b"x-request-id"
CLIENT_ID = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}", re.ASCII)
"""An id that is taken from a client; any other is replaced."""
RECORD = "request_record"
"""Key of a request's record in its ASGI state."""
MAX_PATH_CHARS = 200
QUIET_PATHS = ("/health", "/ready", "/metrics", "/static/")
"""Beginnings of paths whose successful requests are logged at level DEBUG: probes and files."""


@dataclass
class RequestRecord:
    """The facts of a request that are logged; `reason` of a refusal, `details` of a decoded answer.

    `attributes`: those of a decoded answer in traces (`server.tracing`).
    """

    request_id: str
    method: str
    path: str
    began_s: float = field(default_factory=time.monotonic)
    status: int = 0
    reason: str | None = None
    details: Mapping[str, str | int] = field(default_factory=dict)
    attributes: Mapping[str, str | int | float | list[str]] = field(default_factory=dict)
    field_names: frozenset[str] = frozenset()

    def note(self, error: ApiError) -> None:
        """Record the code of an error, and the field that it is about if that is one of `field_names`.

        Its message, and any other field, may repeat what the client has sent.
        """
        name = (error.param or "").partition(".")[0]
        self.reason = error.code or TYPES.get(error.status, "server_error")
        if name in self.field_names:
            self.reason += f" ({name})"

    @property
    def level(self) -> int:
        """The level at which the request is logged."""
        if self.status >= 500:
            return logging.WARNING
        has_left = self.status == 499 and not self.details
        is_quiet = self.status < 400 and self.path.startswith(QUIET_PATHS)
        return logging.DEBUG if has_left or is_quiet else logging.INFO

    def write(self) -> None:
        """Log the request."""
        if not log.isEnabledFor(self.level):
            return
        ms = round((time.monotonic() - self.began_s) * 1000)
        parts = [self.request_id, self.method, self.path, str(self.status), f"{ms} ms"]
        parts += [] if self.reason is None else [self.reason]
        parts += [f"{key}={value}" for key, value in self.details.items()]
        fields = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": ms,
            "reason": self.reason,
            **self.details,
        }
        log.log(self.level, "%s", " ".join(parts), extra={FIELDS: fields})


def request_id_of(values: list[bytes]) -> str:
    """Return the id that a client has sent, or a new one if it sent none, several or an odd one."""
    text = values[0].decode("latin-1") if len(values) == 1 else ""
    return text if CLIENT_ID.fullmatch(text) else f"req_{secrets.token_hex(12)}"


def record_of(scope: Mapping[str, object]) -> RequestRecord | None:
    """Return the record of a request; None outside `RequestLog`."""
    state = scope.get("state")
    found = state.get(RECORD) if isinstance(state, dict) else None
    return found if isinstance(found, RequestRecord) else None


def note_reason(scope: Mapping[str, object], reason: str) -> None:
    """Record the reason of a reply that is not an `ApiError`."""
    record = record_of(scope)
    if record is not None:
        record.reason = reason


def note_error(scope: Mapping[str, object], error: ApiError) -> None:
    """Record the reason of a refusal."""
    record = record_of(scope)
    if record is not None:
        record.note(error)


class RequestLog:
    """The outermost ASGI middleware: gives every request an id, and logs its reply.

    An exception that no other layer has turned into a reply is logged with the id. `field_names`: the names
    of a body's fields that a log line may have.
    """

    def __init__(self, app: ASGIApp, field_names: frozenset[str]) -> None:
        self.app, self.field_names = app, field_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, and log it when its reply is complete."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == ID_HEADER]
        record = RequestRecord(
            request_id_of(values),
            sanitize(scope["method"], 16),
            sanitize(scope["path"], MAX_PATH_CHARS),
            field_names=self.field_names,
        )
        scope.setdefault("state", {})[RECORD] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                header = ID_HEADER, record.request_id.encode()
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        try:
            with ErrorCapture() as capture:
                await self.app(scope, receive, send_with_id)
            if capture.error is not None:
                log.error("%s failed", record.request_id, exc_info=capture.error)
                record.note(unexpected())
                if not record.status:
                    await unexpected().response()(scope, receive, send_with_id)
        finally:
            record.write()
