"""Settings of a server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from unmask.errors import ConfigError
from unmask.options import NOT_A_FLAG, check_fields, option

if TYPE_CHECKING:
    from unmask.decisions.calibration import Calibration
    from unmask.method import MethodSpec

LogFormat = Literal["text", "json"]
STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the resources of a request."""

    max_model_len: Annotated[int | None, option("--context-length", least=2)] = None
    """Maximum number of positions of a canvas, prompt included. Default: the model's context."""

    request_timeout: Annotated[float, option(above=0, metavar="S")] = 600.0
    """Maximum duration of a request in seconds, queueing included."""

    max_body_bytes: Annotated[int, option(least=1)] = 4 << 20
    """Maximum body size in bytes."""

    body_timeout_s: Annotated[float, NOT_A_FLAG] = 30.0
    """Maximum time in seconds for a body to arrive."""

    send_timeout_s: Annotated[float, NOT_A_FLAG] = 60.0
    """Maximum time in seconds that a stream waits for a client that does not read."""

    watchdog_timeout: Annotated[float, option(above=0, metavar="S")] = 300.0
    """Stalled seconds that fail /health."""

    max_headers: Annotated[int, NOT_A_FLAG] = 100
    max_header_bytes: Annotated[int, NOT_A_FLAG] = 16 << 10

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The address of a server, its access rules, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: Annotated[int, option(least=0, most=65535)] = 8000
    """Port; 0 chooses a free one."""

    served_model_name: Annotated[tuple[str, ...], option(metavar="NAME")] = ()
    """Name in the API; repeatable. Default: its own."""

    api_key: Annotated[str | None, option(metavar="KEY")] = field(default=None, repr=False)
    """API key of clients; prefer $UNMASK_API_KEY."""

    allow_unauthenticated: bool = False
    """Accept remote requests without an API key."""

    allowed_host: Annotated[tuple[str, ...], option(metavar="NAME")] = ()
    """Accepted Host header if there is no key."""

    allowed_origins: Annotated[tuple[str, ...], option(metavar="URL")] = ()
    """Web origin that may use it (CORS), or *."""

    otlp_traces_endpoint: Annotated[str | None, Parameter(show=False)] = None
    """Collector of traces, as http://HOST:4318/v1/traces (OpenTelemetry, extra `otel`)."""

    public_metrics: bool = False
    """Serve /metrics without the key."""

    public_page: bool = False
    """Serve the playground without the key."""

    limits: Annotated[Limits, Parameter(name="*")] = Limits()

    shutdown_timeout: Annotated[float, option(least=0, metavar="S")] = 30.0
    """Seconds to drain after SIGTERM."""

    weights_folder: Annotated[Path | None, option(metavar="DIR")] = None
    """Checkpoints of POST /update_weights; needs a key."""

    calibration: Annotated[Path | None, option(metavar="FILE")] = None
    """Of decisions, made by `unmask tune decisions`."""

    log_requests: bool = True
    """Log each request on standard error."""

    log_format: Annotated[LogFormat, option(metavar="F")] = "text"
    """Log lines: text or json. Default: text."""


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """The number of replicas, fixed or by load."""

    replicas: Annotated[int | None, option("--data-parallel-size", least=1)] = None
    """Number of replicas behind one port (extra `ray`)."""

    min_replicas: Annotated[int | None, option(least=1)] = None
    """Minimum number of replicas. Default: 1."""

    max_replicas: Annotated[int | None, option(least=1)] = None
    """Maximum number of replicas, following the load."""

    upscale_delay: Annotated[float | None, option(least=0, metavar="S")] = None
    """Seconds of high load to add one. Default: 30."""

    downscale_delay: Annotated[float | None, option(least=0, metavar="S")] = None
    """Seconds of low load to remove one. Default: 600."""


@dataclass(frozen=True)
class Access:
    """Access control.

    `key_digest`: SHA-256 of the key (None: no key is required). `page_token`: random token with which a
    browser loads the page's files after it has sent the key (None: no page for entering the key).
    Without a key, requests must name one of `hosts` (None: any). This prevents DNS rebinding, in which the
    host name of a web page resolves to this machine. `is_local_only`: without a key, requests must come
    from this machine, whatever the address is that the server listens on.
    """

    key_digest: bytes | None = None
    is_metrics_public: bool = False
    is_page_public: bool = False
    hosts: frozenset[str] | None = None
    is_local_only: bool = False
    page_token: str | None = field(default=None, repr=False)

    @staticmethod
    def digest(key: str) -> bytes:
        """Return the digest of a key, which is stored in its place."""
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

    def admits(self, authorization: bytes | None) -> bool:
        """Return True if an `Authorization` header has the key, in constant time."""
        if self.key_digest is None:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        return hmac.compare_digest(digest, self.key_digest) and scheme.lower() == b"bearer"


def check_names(models: Iterable[str], adapters: Iterable[str]) -> tuple[str, ...]:
    """Return the names that requests may choose, those of the model first.

    Raises ConfigError for a name of the model that an adapter has too.
    """
    for name in adapters:
        if name in models:
            raise ConfigError(
                f"{name!r} is the name of the model and of an adapter; rename the adapter"
            )
    return (*models, *adapters)


def default_method() -> MethodSpec:
    """Return the method of a server that sets no defaults."""
    from unmask.method import MethodSpec  # the flags of `unmask serve` are read without it

    return MethodSpec.parse()


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    `models`: the names under which the model is served, the first one in the replies. `defaults`: the
    default method of requests. `weights_folder`: the folder below which `POST /update_weights` may name
    checkpoints; None: it is refused. `calibration`: of decisions. `origins`: of web pages that may use the
    server; `*`: all. `otlp_endpoint`: address of the collector of traces (None: there are none).
    """

    models: tuple[str, ...]
    defaults: MethodSpec = field(default_factory=default_method)
    limits: Limits = Limits()
    access: Access = Access()
    static: Path = STATIC
    weights_folder: Path | None = None
    calibration: Calibration | None = None
    origins: frozenset[str] = frozenset()
    otlp_endpoint: str | None = None
