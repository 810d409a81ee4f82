"""What every request passes first: who asks, for which host, with how many headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unmask.server.errors import ApiError
from unmask.server.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
PAGE = ("/", "/static")


class Guard:
    """Wraps an app: answers 401, 403 and 431 itself, and puts security headers on every answer.

    `count` is told the route (a template, or "other") and the status of every answer.
    """

    def __init__(self, app: ASGIApp, settings: Settings, count: Callable[[str, int], None]) -> None:
        self.app, self.settings, self.count = app, settings, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
                message = {**message, "headers": [*message.get("headers", []), *SECURITY_HEADERS]}
            await send(message)

        error = self.refusal(scope)
        if error is None:
            await self.app(scope, receive, send_with_headers)
            return
        from starlette.responses import JSONResponse

        response = JSONResponse(error.body(), error.status, error.headers())
        await response(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not let in, if it is not."""
        limits, access = self.settings.limits, self.settings.access
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > limits.max_headers or size > limits.max_header_bytes:
            return ApiError(
                431,
                f"{len(headers)} headers of {size} bytes: at most {limits.max_headers} of "
                f"{limits.max_header_bytes} bytes in all",
                code="headers_too_large",
            )
        if access.key_digest is None:
            return self._host_refusal([value for name, value in headers if name == b"host"])
        if self._is_open(scope["path"]):
            return None
        keys = [value for name, value in headers if name == b"authorization"]
        if len(keys) == 1 and access.admits(keys[0]):
            return None
        return ApiError(
            401,
            "no valid API key: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
        )

    def _is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        access = self.settings.access
        if path == "/health":
            return True
        if path == "/metrics":
            return access.is_metrics_public
        is_page = path == PAGE[0] or path.startswith(PAGE[1] + "/")
        return access.is_page_public and is_page

    def _host_refusal(self, found: list[bytes]) -> ApiError | None:
        hosts = self.settings.access.hosts
        if hosts is None or (len(found) == 1 and host_name(found[0]) in hosts):
            return None
        shown = found[0].decode("latin-1") if found else ""
        return ApiError(
            403,
            f"host {shown[:100]!r}: this server has no API key and answers to "
            f"{', '.join(sorted(hosts))} only; add --allowed-host, or use --api-key",
            code="host_not_allowed",
        )


def host_name(header: bytes) -> str:
    """The name in a `Host` header, without the port, in lower case."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].removeprefix("[")
    return text.partition(":")[0]
