"""Cross-origin requests: which web pages elsewhere may use the server from a browser (`--allowed-origins`).

Source: the Fetch standard, CORS protocol. Differs: no credentials, so a browser sends neither cookies nor
its stored logins; the API key is a header that the page sets itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.responses import Response

from unmask.errors import ConfigError, cut_text
from unmask.server.errors import ApiError
from unmask.server.hosts import host_of
from unmask.server.request_log import note_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY = "*"
METHODS = "GET, HEAD, POST"
EXPOSED = "x-request-id, retry-after"
"""Headers of a reply that a page may read besides the usual ones."""
MAX_AGE_S = 600
HEADER_NAMES = re.compile(r"[a-z0-9-]+(?:[ \t]*,[ \t]*[a-z0-9-]+)*", re.ASCII)
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def allowed_origins(texts: Iterable[str]) -> frozenset[str]:
    """Return the origins of an option in the form in which browsers send them. Raises ConfigError."""
    origins = frozenset(_origin(text) for text in texts)
    if ANY in origins and len(origins) > 1:
        raise ConfigError(
            f"--allowed-origins {ANY} allows every origin; leave {min(origins - {ANY})} out"
        )
    return origins


def _origin(text: str) -> str:
    if text == ANY:
        return text
    scheme, separator, authority = text.lower().partition("://")
    authority = authority.removesuffix(DEFAULT_PORTS.get(scheme, "\n"))
    if scheme not in DEFAULT_PORTS or not separator or host_of(authority) is None:
        raise ConfigError(
            f"--allowed-origins {cut_text(text)!r} is not an origin; give scheme, host and port alone, as "
            f"in https://app.example.org or http://localhost:3000, or {ANY} for all"
        )
    return f"{scheme}://{authority}"


class CorsMiddleware:
    """ASGI middleware that answers preflights, and permits pages of `origins` to read replies.

    An origin is compared exactly; `*` stands for all. A preflight needs no key, since browsers send none
    with it; one of another origin is refused with 403. Other requests of other origins are answered as
    usual, without the header, so that the browser keeps the reply from the page.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app, self.origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on and add the headers to its reply."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        origin = found[0] if len(found) == 1 else None
        headers = self._headers(origin)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", []))
                message = {**message, "headers": [*own, *headers]}
            await send(message)

        names = dict(scope["headers"])
        is_preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in names
        if origin is None or not is_preflight:
            await self.app(scope, receive, send_with_headers)
            return
        requested = names.get(b"access-control-request-headers", b"").decode("latin-1").lower()
        await self._preflight(scope, origin, requested)(scope, receive, send_with_headers)

    def _headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """Return the headers of every reply to a request of an origin."""
        if ANY in self.origins:
            permission = [(b"access-control-allow-origin", b"*")]
        else:
            permission = [(b"vary", b"Origin")]
            if origin is not None and origin in self.origins:
                permission.append((b"access-control-allow-origin", origin.encode()))
        if len(permission) == 2 or ANY in self.origins:
            permission.append((b"access-control-expose-headers", EXPOSED.encode()))
        return permission if origin is not None or ANY not in self.origins else []

    def _preflight(self, scope: Scope, origin: str, requested: str) -> Response:
        """Return the reply to a preflight. Any header may be sent: unknown ones have no effect here."""
        if not self.origins & {ANY, origin}:
            error = ApiError(
                403,
                f"origin {origin[:100]!r} may not use this server; start it with --allowed-origins",
                code="origin_not_allowed",
            )
            note_error(scope, error)
            return error.response()
        headers = {
            "access-control-allow-methods": METHODS,
            "access-control-max-age": str(MAX_AGE_S),
        }
        if HEADER_NAMES.fullmatch(requested):
            headers["access-control-allow-headers"] = requested
        return Response(status_code=204, headers=headers)
