"""Accepting connections: limits, places for status requests, and room made by closing silent clients.

A connection is silent until a whole request head has arrived and again after its reply, receiving until
the body has arrived, and busy until the reply is sent. When there are too many connections, the client with
the most silent ones loses its oldest one; without silent ones, the oldest receiving one goes. Busy ones are
never closed; when only these are left, a small reserve of connections answers the status routes and refuses
the rest.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

log = logging.getLogger("unmask.server")

MAX_CONNECTIONS = 1000
RESERVE = 32
"""Connections beyond the limit that answer the status routes."""
ADDRESS_SHARE = 0.75
"""Share of the connections that the clients of one address may have."""
BATCH = 16
"""Connections accepted before the event loop serves the others again."""
OTHER_FILES = 64
"""Descriptors for everything but connections: weights, the page's files, modules, the log."""
FEWEST = 8
RETRY_S = 0.1
"""Time without accepting after the system had no memory or descriptor for another connection."""
REPORT_S = 10.0
"""Shortest time between two warnings about too many connections."""
USER_TIMEOUT_MS = 60_000
"""Time after which a client that acknowledges nothing, or that never reads, is disconnected."""
NO_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True)
class ConnectionLimits:
    """The maximum number of connections, and how many more answer status requests."""

    most: int = MAX_CONNECTIONS
    reserve: int = RESERVE

    @property
    def most_per_address(self) -> int:
        """Maximum number of connections of one address."""
        return max(1, int(self.most * ADDRESS_SHARE))


class ConnectionStage(IntEnum):
    """The state of a connection; those of a lower stage are closed first."""

    SILENT = 0
    RECEIVING = 1
    BUSY = 2


class Connection(Protocol):
    """A connection as the table sees it."""

    def evict(self) -> None:
        """Close the connection at once."""

    def serve_status_only(self) -> None:
        """Refuse requests to all routes but those of the server's status."""


class ConnectionTable:
    """The open connections by stage and address, each address's oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.num_evicted, self.num_refused = 0, 0
        self._stages: dict[Connection, tuple[ConnectionStage, str]] = {}
        self._addresses: Counter[str] = Counter()
        self._by_stage: dict[ConnectionStage, dict[str, dict[Connection, None]]] = {
            stage: {} for stage in ConnectionStage
        }
        self._reported_s = -REPORT_S

    def __len__(self) -> int:
        return len(self._stages)

    def add(self, connection: Connection, address: str) -> None:
        """Add a silent connection; close another one, or admit it to the reserve, beyond the limits."""
        limits = self.limits
        of_address = self._addresses[address]
        is_over = len(self) >= limits.most
        if is_over or of_address >= limits.most_per_address:
            own = None if is_over and of_address < limits.most_per_address else address
            if not self.evict(own):
                self._admit_to_reserve(connection, address)
        self._stages[connection] = (ConnectionStage.SILENT, address)
        self._addresses[address] += 1
        self._by_stage[ConnectionStage.SILENT].setdefault(address, {})[connection] = None

    def _admit_to_reserve(self, connection: Connection, address: str) -> None:
        connection.serve_status_only()
        self.num_refused += 1
        self.report()

    @property
    def is_full(self) -> bool:
        """True when not even a status request finds a place."""
        has_room = len(self) < self.limits.most + self.limits.reserve
        return not has_room and not any(
            self._by_stage[stage] for stage in (ConnectionStage.SILENT, ConnectionStage.RECEIVING)
        )

    def evict(self, address: str | None = None) -> bool:
        """Close the connection that matters least, of one address or of all; False if all are busy."""
        for stage in (ConnectionStage.SILENT, ConnectionStage.RECEIVING):
            groups = self._by_stage[stage]
            group = (
                max(groups.values(), key=len, default=None)
                if address is None
                else groups.get(address)
            )
            if group:
                oldest = next(iter(group))
                self.remove(oldest)
                oldest.evict()
                self.num_evicted += 1
                self.report()
                return True
        return False

    def move(self, connection: Connection, stage: ConnectionStage) -> None:
        """Record the stage of a connection; within a stage it is then the newest."""
        before, address = self._stages.get(connection, (stage, ""))
        if before is stage:
            return
        self._leave(connection, before, address)
        self._stages[connection] = (stage, address)
        self._by_stage[stage].setdefault(address, {})[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a connection; no effect if it is not in the table."""
        stage, address = self._stages.pop(connection, (None, ""))
        if stage is None:
            return
        self._leave(connection, stage, address)
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def _leave(self, connection: Connection, stage: ConnectionStage, address: str) -> None:
        group = self._by_stage[stage][address]
        del group[connection]
        if not group:
            del self._by_stage[stage][address]

    def report(self, reason: str = "too many connections") -> None:
        """Log what was done about too many connections, at most once in `REPORT_S`."""
        now = time.monotonic()
        if now - self._reported_s < REPORT_S:
            return
        self._reported_s = now
        log.warning(
            "%s: %d open, at most %d; since the start %d silent ones were closed and %d refused",
            reason,
            len(self),
            self.limits.most,
            self.num_evicted,
            self.num_refused,
        )


class Acceptor:
    """The listening socket of an event loop; it has the methods of `asyncio.Server` that uvicorn calls.

    asyncio's own logs a traceback per attempt when descriptors run out, and knows no limits.
    """

    def __init__(
        self,
        bound: socket.socket,
        table: ConnectionTable,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self.bound, self.table, self.make_protocol = bound, table, make_protocol
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._is_closed = False
        bound.setblocking(False)
        self._start()

    def _start(self) -> None:
        self._retry = None
        if not self._is_closed:
            self._loop.add_reader(self.bound.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept up to `BATCH` connections."""
        for _ in range(BATCH):
            try:
                connection, _ = self.bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in NO_RESOURCES:
                    self._make_room(error)
                    return
                log.debug("a connection failed before it was accepted: %s", error)
                return
            if self.table.is_full:
                connection.close()
                self.table.num_refused += 1
                self.table.report()
                continue
            task = self._loop.create_task(self._connect(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            tune_socket(connection)
            await self._loop.connect_accepted_socket(self.make_protocol, connection)
        except OSError as error:
            log.debug("a connection broke off as it was accepted: %s", error)
            connection.close()

    def _make_room(self, error: OSError) -> None:
        """Close a silent connection, and accept nothing for a moment."""
        self.table.evict()
        self.table.report(f"no connection can be accepted ({error.strerror})")
        self._loop.remove_reader(self.bound.fileno())
        self._retry = self._loop.call_later(RETRY_S, self._start)

    def close(self) -> None:
        """Accept no more connections."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self.bound.fileno())

    async def wait_closed(self) -> None:
        """Wait for the connections that are being set up."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def tune_socket(connection: socket.socket) -> None:
    """Send small packets at once, and give up clients that vanished or never read."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def address_of(peer: object) -> str:
    """Return the client that a peer address stands for: an IPv4 address, or the /64 of an IPv6 address."""
    host = peer[0] if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def count_descriptors() -> int:
    """Return the number of open descriptors of this process, or a usual one where it is not known."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(folder))
    return OTHER_FILES


def fit_descriptors(limits: ConnectionLimits, num_open: int) -> tuple[ConnectionLimits, str | None]:
    """Raise the soft limit of open files as far as needed; return limits that fit, and a warning.

    `num_open` descriptors are in use already.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits, None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_open + OTHER_FILES + limits.most + limits.reserve
    infinite = resource.RLIM_INFINITY
    if soft == infinite or soft >= needed:
        return limits, None
    raised = needed if hard == infinite else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # some systems have a lower limit of their own
        raised = soft
    if raised >= needed:
        return limits, None
    others = min(OTHER_FILES, raised // 4)
    room = max(FEWEST, raised - num_open - others)
    reserve = min(limits.reserve, room // 4)
    fitting = ConnectionLimits(room - reserve, reserve)
    return fitting, (
        f"the limit of open files is {raised}, so at most {fitting.most} connections are accepted instead "
        f"of {limits.most}; raise it to {needed} (ulimit -n {needed}, or LimitNOFILE={needed} of systemd)"
    )
