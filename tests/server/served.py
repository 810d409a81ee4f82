"""A served model: in this process through Starlette's client, or behind a real socket in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from unmask import LLM
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine
from unmask.engine.model_runner import ModelRunner
from unmask.server.app import create_app
from unmask.server.connections import ConnectionLimits
from unmask.server.process import DEFAULT_LIMITS, bind, server_of
from unmask.server.settings import ServerSettings

QUESTION = "Tom has 3 boxes with 4 pens each. He buys 5 more pens. How many pens does he have?"
ANSWER = "In boxes: 3*4=12\nThen: 12+5=17\n#### 17"
CHAT = {
    "messages": [{"role": "user", "content": QUESTION}],
    "decoder": "threshold",
    "max_tokens": 48,
}


class Gate:
    """Forwards wait while it is closed; `fails` makes the next one raise."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.waits = threading.Event()
        self.fails = False

    def pass_(self) -> None:
        if not self.is_open.is_set():
            self.waits.set()
            assert self.is_open.wait(30), "nobody opened the gate"
        if self.fails:
            raise RuntimeError("secret reason: the device fell off")

    def close(self) -> None:
        self.waits.clear()
        self.is_open.clear()

    def open(self) -> None:
        self.is_open.set()


def gated(gate: Gate) -> type[ModelRunner]:
    class GatedRunner(ModelRunner):
        def launch(self, inputs: Any, ahead: Any = ()) -> Any:
            gate.pass_()
            return super().launch(inputs, ahead)

    return GatedRunner


@dataclass
class Live:
    """A server behind a socket."""

    host: str
    port: int
    engine: Engine
    gate: Gate
    app: Any
    server: Any

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def send(self, data: bytes) -> bytes:
        """What comes back until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def idle(self) -> bool:
        """Wait until nothing runs or waits and all rows are free."""
        return wait_for(
            lambda: (s := self.engine.stats).running + s.queued == 0 and s.rows_free == s.rows_total
        )


def read_all(connection: socket.socket, until: bytes | None = None) -> bytes:
    """What a server sends until it hangs up, or until it has sent `until` last."""
    found = b""
    while (until is None or not found.endswith(until)) and (piece := connection.recv(65536)):
        found += piece
    return found


def drip(client: socket.socket, piece: bytes, most: int = 400) -> bytes:
    """Send a piece again and again, slowly, until the server answers or hangs up; the answer."""
    client.settimeout(0.02)
    found = b""
    for _ in range(most):
        try:
            client.sendall(piece)
            new = client.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return found
        if not new:
            return found
        found += new
    raise AssertionError("the server reads on and on")


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether a condition comes true in time; asks often instead of sleeping for long."""
    tick = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return True
        tick.wait(0.01)
    return False


@contextmanager
def gated_client(llm: LLM, settings: ServerSettings | None = None, **engine: Any) -> Iterator[Any]:
    """A client of an engine whose forwards a gate holds up; `client.gate`, `client.engine`."""
    gate = Gate()
    made = _engine(llm, gate, engine)
    app = create_app(llm, made, settings or ServerSettings(models=("demo",)))
    with TestClient(app, raise_server_exceptions=False) as found:
        found.gate, found.engine = gate, made
        try:
            yield found
        finally:
            gate.open()


def _engine(llm: LLM, gate: Gate, options: dict[str, Any]) -> Engine:
    plain = llm.make_runner
    llm.make_runner = gated(gate)
    try:
        return Engine(llm, EngineConfig(**options))
    finally:
        llm.make_runner = plain


@contextmanager
def serving(
    llm: LLM,
    settings: ServerSettings | None = None,
    drain_timeout_s: float = 20,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    **engine: Any,
) -> Iterator[Live]:
    """A real server in a thread of this process."""
    gate = Gate()
    made = _engine(llm, gate, engine)
    app = create_app(llm, made, settings or ServerSettings(models=("demo",)))
    bound = bind("127.0.0.1", 0)
    ready = threading.Event()
    server = server_of(app, drain_timeout_s=drain_timeout_s, on_ready=ready.set, limits=limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    assert ready.wait(20), "the server did not start"
    host, port = bound.getsockname()[:2]
    try:
        yield Live(host, port, made, gate, app, server)
    finally:
        gate.open()
        server.handle_exit(15, None)
        server.handle_exit(15, None)
        thread.join(30)
        bound.close()
        assert not thread.is_alive(), "the server did not stop"
