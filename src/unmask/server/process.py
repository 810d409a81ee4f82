"""The server's process: a bound socket, uvicorn around the app, and its shutdown.

The first SIGTERM or SIGINT starts to drain: `/health` and new requests are answered with 503, running
requests finish within the drain timeout. A second signal aborts the rest. Either way the process ends with
status 0.

When the engine has failed, all waiting requests are answered with an error, `/health` with 503 for
`FAILED_GRACE_S`, and then the server ends; the caller should exit with another status, to be restarted.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import anyio
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from unmask.errors import ConfigError
from unmask.server.auth import IN_RESERVE
from unmask.server.connections import (
    Acceptor,
    ConnectionLimits,
    ConnectionStage,
    ConnectionTable,
    address_of,
)
from unmask.server.errors import ApiError
from unmask.server.request_log import ID_HEADER, RequestRecord, request_id_of
from unmask.server.service import Service
from unmask.server.settings import ServerConfig

if TYPE_CHECKING:
    import asyncio

    from fastapi import FastAPI

log = logging.getLogger("unmask.server")
HEAD_TIMEOUT_S = 10.0
"""Time for a connection to send a whole request head, and any rest of a body, before it is closed."""
CLOSE_TIMEOUT_S = 10
"""Time for clients to read complete replies when the server stops."""
FAILED_GRACE_S = 3.0
"""Time that a server whose engine has failed keeps running, to send its last replies and report 503."""
STARTUP_FAILURE = 3
"""uvicorn's exit status after a failure of the app's startup."""
DEFAULT_LIMITS = ConnectionLimits()
State = dict[str, Any]  # as uvicorn declares it


class HttpConnection(H11Protocol):
    """HTTP/1.1 with its place in a connection table, and timeouts for what clients send.

    uvicorn times neither a request head that does not end nor the rest of a body after its reply.
    """

    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, table: ConnectionTable, config: uvicorn.Config, state: ServerState, app_state: State
    ) -> None:
        super().__init__(config=config, server_state=state, app_state=app_state)
        self.table = table

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the connection to the table."""
        super().connection_made(transport)
        self.table.add(self, address_of(transport.get_extra_info("peername")))
        self._follow()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Begin the next request of this connection."""
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the table."""
        self._stop_timer()
        self.table.remove(self)
        super().connection_lost(exc)

    @property
    def stage(self) -> ConnectionStage:
        """The stage of the connection."""
        if self.cycle is None or self.cycle.response_complete:
            return ConnectionStage.SILENT
        return ConnectionStage.RECEIVING if self.cycle.more_body else ConnectionStage.BUSY

    def _follow(self) -> None:
        """Record the stage; a silent connection has `HEAD_TIMEOUT_S` for its next request head."""
        stage = self.stage
        self.table.move(self, stage)
        if stage is not ConnectionStage.SILENT:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        self.transport.close()

    def evict(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def serve_status_only(self) -> None:
        """Refuse requests to all routes but those of the server's status."""
        self.app_state = {**self.app_state, IN_RESERVE: True}

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless a reply has begun, and close the connection."""
        record = RequestRecord(request_id_of([]), "-", "-", status=400, reason="invalid_http")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reply = ApiError(
                400, f"{msg} Nothing after it is read.", code="invalid_http"
            ).response()
            headers = [
                *reply.raw_headers,
                (ID_HEADER, record.request_id.encode()),
                (b"connection", b"close"),
            ]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(reply.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        record.write()
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore requests for another protocol, as HTTP allows."""


class ServerProcess(uvicorn.Server):
    """A uvicorn server that drains before it stops, and that stops when its engine has failed.

    `on_ready` is called when it accepts connections. `has_failed` is valid after `run` too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_timeout_s: float,
        on_ready: Callable[[], None],
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config)
        self.service, self.drain_timeout_s, self.on_ready = service, drain_timeout_s, on_ready
        self.connections = ConnectionTable(limits)
        self._drain_until_s: float | None = None
        self._failed_until_s: float | None = None
        self._aborts = False

    @property
    def has_failed(self) -> bool:
        """True if the engine has failed."""
        return self.service.engine.failure is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, accept connections of bound sockets, and call `on_ready`.

        In place of uvicorn's, which leaves accepting to asyncio.
        """
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise SystemExit(STARTUP_FAILURE)

        def make_protocol() -> HttpConnection:
            return HttpConnection(
                self.connections, self.config, self.server_state, self.lifespan.state
            )

        self.servers = [
            Acceptor(bound, self.connections, make_protocol)  # type: ignore[misc]
            for bound in sockets or []
        ]
        self.started = True
        self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain; the second time, abort the rest."""
        if self.service.is_draining:
            self._aborts = True
            return
        self.service.is_draining = True
        self._drain_until_s = time.monotonic() + self.drain_timeout_s

    async def on_tick(self, counter: int) -> bool:
        """Stop the server if the engine has failed or draining is complete; called ten times per second."""
        if self.has_failed and not self.should_exit:
            now = time.monotonic()
            if self._failed_until_s is None:
                self._failed_until_s = now + FAILED_GRACE_S
                log.critical("the engine has failed; the process ends and must be restarted")
            self.should_exit = now >= self._failed_until_s
        if self._drain_until_s is not None and not self.should_exit:
            must_stop = self._aborts or time.monotonic() >= self._drain_until_s
            num_inside = self.service.num_inside
            if must_stop or not num_inside:
                if num_inside:
                    log.warning("stopping: %d requests aborted", num_inside)
                await anyio.to_thread.run_sync(self.service.stop)
                self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ConfigError if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port} cannot be bound: {reason}; choose another, or 0 for any"
        ) from None


def url_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(
    app: FastAPI,
    *,
    drain_timeout_s: float = ServerConfig.shutdown_timeout,
    on_ready: Callable[[], None] = lambda: None,
    limits: ConnectionLimits = DEFAULT_LIMITS,
) -> ServerProcess:
    """Return the server of an app; its `run(sockets=[bound])` serves until a signal or a failure."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )
    return ServerProcess(config, app.state.service, drain_timeout_s, on_ready, limits)
