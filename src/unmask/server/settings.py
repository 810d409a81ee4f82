"""What a server is told when it starts."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from unmask.method import MethodSpec

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Limits:
    """What a client may use up.

    `max_body_bytes` of a request, which must be there within `body_timeout_s`; `timeout_s`, the longest
    that a request may take, waiting included; `send_timeout_s` that a stream waits for a client that does
    not read; `max_model_len` positions of a canvas, prompt included (None: the model's context).
    """

    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 30.0
    timeout_s: float = 600.0
    send_timeout_s: float = 60.0
    max_headers: int = 100
    max_header_bytes: int = 16 << 10
    max_model_len: int | None = None


@dataclass(frozen=True)
class Access:
    """Who may call.

    `key_digest`: SHA-256 of the key (None: none is asked for). `page_token`: a random text that a browser
    keeps once it has shown the key, and loads the page's files with (None: browsers get no page that asks
    for the key). Without a key, requests must name one of `hosts` (None: any), so that a web page which
    points a name of its own at this machine is refused.
    """

    key_digest: bytes | None = None
    is_metrics_public: bool = False
    is_page_public: bool = False
    hosts: frozenset[str] | None = None
    page_token: str | None = field(default=None, repr=False)

    @staticmethod
    def digest(key: str) -> bytes:
        """What is kept of a key."""
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

    def admits(self, authorization: bytes | None) -> bool:
        """Whether an `Authorization` header has the key; takes the same time for every wrong one."""
        if self.key_digest is None:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        return hmac.compare_digest(digest, self.key_digest) and scheme.lower() == b"bearer"


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    `models`: the names under which the model is served, the first one in the replies. `defaults`: the
    method of requests that choose none.
    """

    models: tuple[str, ...]
    defaults: MethodSpec = field(default_factory=MethodSpec.parse)
    limits: Limits = Limits()
    access: Access = Access()
    static: Path = STATIC
