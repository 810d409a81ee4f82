"""What a browser gets at `/` without the key: still 401, but a page that asks for it.

The page tells nothing about the server and loads nothing. Its script asks for `/` again with the key in
the `Authorization` header, and the answer sets a cookie with a random token: a browser sends no header of
ours when it loads a page and its scripts. The cookie opens the page's own files, which are alike on every
server, and nothing else: what the page calls wants the key in the header.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.responses import Response

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
