"""Access control: the API key, the allowed host names, the limits on headers, and the page for the key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import HTMLResponse, Response

from unmask.server.errors import ApiError, too_many_connections
from unmask.server.hosts import host_of
from unmask.server.request_log import note_error
from unmask.server.settings import ServerSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]
SECURITY_HEADERS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
INDEX_PATH, DOCS_PATH, STATIC_PATH = "/", "/docs", "/static/"
KEY_PAGE = Path(__file__).parent / "static" / "key.html"
PROBE_PATHS = ("/health", "/ready")
COOKIE = b"unmask_page"
IN_RESERVE = "is_in_reserve"
"""Key in the state of a request that came on a connection which serves `PROBE_PATHS` only."""


class AccessMiddleware:
    """ASGI middleware that answers 401, 403 and 431, and adds security headers to every response.

    `count` is called with the route (a template, or "other") and the status of every response.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, count: Callable[[str, int], None]
    ) -> None:
        self.app, self.settings, self.count = app, settings, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the app, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
                own = list(message.get("headers", []))
                names = {name for name, _ in own}
                more = [header for header in SECURITY_HEADERS if header[0] not in names]
                message = {**message, "headers": [*own, *more, *self._page_cookie(scope)]}
            await send(message)

        error = self.refusal(scope)
        if error is not None:
            note_error(scope, error)
        app = self.app if error is None else self._response(scope, error)
        await app(scope, receive, send_with_headers)

    def _response(self, scope: Scope, error: ApiError) -> Response:
        """Return the response of a refusal; to a browser that opens the page, the page for the key."""
        has_key_page = error.status == 401 and self.settings.access.page_token is not None
        if has_key_page and opens_page(scope):
            return key_page_response()
        return error.response()

    def _page_cookie(self, scope: Scope) -> Headers:
        """Return the header that lets a browser load the page's files after it has sent the key."""
        access = self.settings.access
        needs_cookie = scope["path"] in (INDEX_PATH, DOCS_PATH) and not access.is_page_public
        if access.page_token is None or not needs_cookie or not self._has_key(scope["headers"]):
            return []
        return [set_cookie(access.page_token, scope.get("scheme", "http"))]

    def refusal(self, scope: Scope) -> ApiError | None:
        """Return the error of a request that is not allowed, else None."""
        limits, access = self.settings.limits, self.settings.access
        headers: Headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > limits.max_headers or size > limits.max_header_bytes:
            return ApiError(
                431,
                f"{len(headers)} headers of {size} bytes: at most {limits.max_headers} of "
                f"{limits.max_header_bytes} bytes in all",
                code="headers_too_large",
            )
        if scope.get("state", {}).get(IN_RESERVE) and scope["path"] not in PROBE_PATHS:
            return too_many_connections()
        if access.key_digest is None:
            return self._peer_refusal(scope) or self._host_refusal(header_values(headers, b"host"))
        if self._is_public(scope["path"]) or self._has_key(headers):
            return None
        token = access.page_token
        if token is not None and is_page(scope["path"]) and has_cookie(token, headers):
            return None
        return ApiError(
            401,
            "no valid API key: send the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
        )

    def _is_public(self, path: str) -> bool:
        """Return True for a path that needs no key."""
        access = self.settings.access
        if path in PROBE_PATHS:
            return True
        if path == "/metrics":
            return access.is_metrics_public
        return access.is_page_public and is_page(path)

    def _has_key(self, headers: Headers) -> bool:
        values = header_values(headers, b"authorization")
        access = self.settings.access
        return access.key_digest is not None and len(values) == 1 and access.admits(values[0])

    def _peer_refusal(self, scope: Scope) -> ApiError | None:
        peer = (scope.get("client") or ("",))[0]
        if not self.settings.access.is_local_only or is_this_machine(peer):
            return None
        return ApiError(
            403,
            f"client {peer[:100]!r}: this server has no API key and answers its own machine only; start it "
            f"with --api-key, or with --allow-unauthenticated",
            code="client_not_allowed",
        )

    def _host_refusal(self, values: list[bytes]) -> ApiError | None:
        hosts = self.settings.access.hosts
        if hosts is None or (len(values) == 1 and host_of(values[0].decode("latin-1")) in hosts):
            return None
        host = values[0].decode("latin-1") if values else ""
        return ApiError(
            403,
            f"host {host[:100]!r}: this server has no API key and answers to "
            f"{', '.join(sorted(hosts))} only; add --allowed-host, or use --api-key",
            code="host_not_allowed",
        )


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all headers of a name."""
    return [value for key, value in headers if key == name]


def is_this_machine(address: str) -> bool:
    """Return True for a loopback address, also one of IPv4 as IPv6 writes it."""
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    return (mapped or peer).is_loopback


def is_page(path: str) -> bool:
    """Return True for the path of the page, of that about the API, or of one of their files.

    They hold nothing of this server's: the latter reads `/openapi.json`, which needs the key itself.
    """
    return path in (INDEX_PATH, DOCS_PATH) or path.startswith(STATIC_PATH)


def opens_page(scope: Scope) -> bool:
    """Return True if a browser requests the page in order to show it."""
    accepted = b",".join(header_values(scope["headers"], b"accept"))
    is_page_request = scope["path"] in (INDEX_PATH, DOCS_PATH) and scope["method"] == "GET"
    return is_page_request and b"text/html" in accepted.lower()


def set_cookie(token: str, scheme: str) -> tuple[bytes, bytes]:
    """Return the header that makes a browser send the token with requests for the page's files."""
    secure = b"; Secure" if scheme == "https" else b""
    value = COOKIE + b"=" + token.encode() + b"; Path=/; HttpOnly; SameSite=Strict" + secure
    return b"set-cookie", value


def has_cookie(token: str, headers: Headers) -> bool:
    """Return True if a request has the token. The time does not depend on how much of it is right."""
    pairs = [
        part.strip().partition(b"=")
        for cookies in header_values(headers, b"cookie")
        for part in cookies.split(b";")
    ]
    matches = [
        hmac.compare_digest(value, token.encode()) for name, _, value in pairs if name == COOKIE
    ]
    return any(matches)


def key_page_response() -> Response:
    """Return the page for the key, with status 401 and a policy that allows only its own script."""
    html, policy = key_page()
    headers = {
        "www-authenticate": "Bearer",
        "content-security-policy": policy,
        "cache-control": "no-store",
    }
    return HTMLResponse(html, 401, headers)


@cache
def key_page() -> tuple[str, str]:
    """Return the HTML of the page, and a policy with the hashes of its script and style."""
    html = KEY_PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = hashlib.sha256(content.encode()).digest()
        hashes[tag] = base64.b64encode(digest).decode()
    return html, (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; frame-ancestors 'none'; base-uri 'none'; "
        f"form-action 'none'"
    )
