"""What every request passes first: who asks, for which host, with how many headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unmask.server import auth
from unmask.server.errors import ApiError
from unmask.server.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


import base64
import hashlib
import hmac
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

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

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, count: Callable[[str, int], None]
    ) -> None:
        self.app, self.settings, self.count = app, settings, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
                own = list(message.get("headers", []))
                names = {name for name, _ in own}
                more = [header for header in SECURITY_HEADERS if header[0] not in names]
                message = {**message, "headers": [*own, *more, *self._cookie(scope)]}
            await send(message)

        error = self.refusal(scope)
        if error is None:
            await self.app(scope, receive, send_with_headers)
            return
        await self._response(scope, error)(scope, receive, send_with_headers)

    def _response(self, scope: Scope, error: ApiError) -> Response:
        """A refusal; a browser that wants the page is asked for the key instead."""
        from starlette.responses import JSONResponse

        has_key_page = error.status == 401 and self.settings.access.page_token is not None
        is_for_page = scope["path"] == PAGE[0] and auth.wants_page(
            scope["method"], scope["headers"]
        )
        if has_key_page and is_for_page:
            return auth.answer()
        return JSONResponse(error.body(), error.status, error.headers())

    def _cookie(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What lets a browser load the page's files, for one that has shown the key for the page."""
        access = self.settings.access
        is_needed = scope["path"] == PAGE[0] and not access.is_page_public
        if access.page_token is None or not is_needed or not self._has_key(scope["headers"]):
            return []
        return [auth.set_cookie(access.page_token, scope.get("scheme", "http"))]

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
        if self._is_open(scope["path"]) or self._has_key(headers):
            return None
        token = access.page_token
        if token is not None and is_page(scope["path"]) and auth.has_cookie(token, headers):
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
        return access.is_page_public and is_page(path)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        keys = [value for name, value in headers if name == b"authorization"]
        access = self.settings.access
        return access.key_digest is not None and len(keys) == 1 and access.admits(keys[0])

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


def is_page(path: str) -> bool:
    """Whether a path is the page's or one of its files'."""
    return path == PAGE[0] or path.startswith(PAGE[1] + "/")


def host_name(header: bytes) -> str:
    """The name in a `Host` header, without the port, in lower case."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].removeprefix("[")
    return text.partition(":")[0]


Headers = list[tuple[bytes, bytes]]
FILE = Path(__file__).parent / "static" / "key.html"
NAME = b"unmask_page"


def wants_page(method: str, headers: Headers) -> bool:
    """Whether a browser asks, to show what it gets."""
    accepted = b",".join(value for name, value in headers if name == b"accept")
    return method == "GET" and b"text/html" in accepted.lower()


def answer() -> Response:
    """The page, with status 401 and a policy that lets its own script and style run and no others."""
    from starlette.responses import HTMLResponse

    html, policy = _page()
    headers = {
        "www-authenticate": "Bearer",
        "content-security-policy": policy,
        "cache-control": "no-store",
    }
    return HTMLResponse(html, 401, headers)


def set_cookie(token: str, scheme: str) -> tuple[bytes, bytes]:
    """The header that makes a browser send the token with every request for the page's files."""
    secure = b"; Secure" if scheme == "https" else b""
    value = NAME + b"=" + token.encode() + b"; Path=/; HttpOnly; SameSite=Strict" + secure
    return b"set-cookie", value


def has_cookie(token: str, headers: Headers) -> bool:
    """Whether a request has the token; takes the same time for every wrong one."""
    pairs = [
        part.strip().partition(b"=")
        for name, value in headers
        if name == b"cookie"
        for part in value.split(b";")
    ]
    same = [hmac.compare_digest(value, token.encode()) for name, _, value in pairs if name == NAME]
    return any(same)


@cache
def _page() -> tuple[str, str]:
    """The file, and a policy with the hashes of what stands between its tags."""
    html = FILE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = hashlib.sha256(inside.encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    return html, (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; frame-ancestors 'none'; base-uri 'none'; "
        f"form-action 'none'"
    )
