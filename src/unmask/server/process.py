"""The server's process: a bound socket, uvicorn around the app, and how it stops.

The first SIGTERM or SIGINT begins to drain: `/health` and new requests answer 503, what is running finishes
within the drain time. A second one aborts what is left. Either way the process ends with status 0.

When the engine has failed, everyone who waits is told so, `/health` answers 503 for `FAILED_GRACE_S`, and
then the server ends: who started it is to end with another status, so that it is started again.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import anyio
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unmask.errors import ConfigError
from unmask.server.service import Service

if TYPE_CHECKING:
    import asyncio

    from fastapi import FastAPI

log = logging.getLogger("unmask.server")
HEAD_TIMEOUT_S = 10.0
"""A connection that has not sent a whole request head after that long is closed."""
CLOSE_TIMEOUT_S = 10
"""How long answers that are decoded may take to be read, when the server stops."""
FAILED_GRACE_S = 3.0
"""How long a server whose engine has failed goes on, to send its last answers and to be seen as failed."""
MAX_CONNECTIONS = 1000


class Protocol(H11Protocol):
    """HTTP/1.1 with a time limit on request heads, which uvicorn does not have."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client may begin to speak."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head_is_there()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        self.transport.close()


class ServerProcess(uvicorn.Server):
    """A uvicorn server that drains before it stops, and ends when its engine has failed.

    `on_ready` is called when it accepts connections. After `run`, `has_failed` says how it ended.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_timeout_s: float,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.service, self.drain_timeout_s, self.on_ready = service, drain_timeout_s, on_ready
        self._drain_until_s: float | None = None
        self._failed_until_s: float | None = None
        self._gives_up = False

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed."""
        return self.service.engine.failure is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or, the second time, give up what is left."""
        if self.service.is_draining:
            self._gives_up = True
            return
        self.service.is_draining = True
        self._drain_until_s = time.monotonic() + self.drain_timeout_s

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: see whether the engine has failed, and whether the draining is over."""
        if self.has_failed and not self.should_exit:
            now = time.monotonic()
            if self._failed_until_s is None:
                self._failed_until_s = now + FAILED_GRACE_S
                log.critical("the engine has failed, this process ends: start it again")
            self.should_exit = now >= self._failed_until_s
        if self._drain_until_s is not None and not self.should_exit:
            stats = self.service.engine.stats
            is_over = self._gives_up or time.monotonic() >= self._drain_until_s
            if is_over or stats.queued + stats.running == 0:
                if stats.queued + stats.running:
                    log.warning("stopping: %d requests aborted", stats.queued + stats.running)
                await anyio.to_thread.run_sync(self.service.engine.stop)
                self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port} cannot be bound: {reason}; choose another, or 0 for any"
        ) from None


def url_of(bound: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(
    app: FastAPI,
    *,
    drain_timeout_s: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
) -> ServerProcess:
    """The server of an app; `run(sockets=[bound])` serves until a signal says otherwise."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )
    return ServerProcess(config, app.state.service, drain_timeout_s, on_ready)
