"""A server of 32-token blocks at a fixed pace, for tests of clients.

Every request's answer is so many tokens as were asked for, in blocks of `BLOCK` that come every `block_s`
seconds, whatever else is under way. The token is one of the demo model's vocabulary, so counting the
text's tokens gives the number of tokens. `log` keeps the bodies of all requests.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

BLOCK = 32
WORD = " pens"
FORWARDS_A_BLOCK = 8


@dataclass
class Mock:
    """What a test sets, and what it finds afterwards."""

    block_s: float = 0.05
    key: str | None = None
    fail: set[int] = field(default_factory=set)
    """Numbers (from 0) of the requests that are refused."""
    too_long: set[int] = field(default_factory=set)
    """Numbers of the requests that do not fit the context."""
    break_off: set[int] = field(default_factory=set)
    accept_length: float | None = None
    answer: str | None = None
    """Given as the whole answer, where one is set."""
    tells_forwards: bool = True
    tells_tokens: bool = True
    """Whether replies have a usage record with the number of tokens."""
    model_info: dict | None = None
    """The page `/model_info`; None: the server has none."""
    root: str | None = None
    """The root of the model in `/v1/models`."""
    served: str = "demo"
    """Name of the model in `/v1/models`."""
    steps: int = 0
    """Forwards since the start, as `/metrics` counts them."""
    log: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of the same requests."""
    url: str = ""


def _forwards(num: int) -> int:
    return FORWARDS_A_BLOCK * -(-num // BLOCK)


def _usage(num: int, tells: bool) -> dict:
    forwards = _forwards(num)
    return {
        "prompt_tokens": 4,
        "completion_tokens": num,
        "total_tokens": 4 + num,
        **({"num_forwards": forwards} if tells else {}),
    }


class App:
    """The handlers of a mock."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock

    def make(self) -> Starlette:
        """The application."""
        routes = [
            Route("/v1/models", self.models),
            Route("/get_server_info", self.info),
            Route("/model_info", self.model),
            Route("/metrics", self.metrics),
            Route("/generate", self.generate, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def models(self, request: Request) -> JSONResponse:
        root = {} if self.mock.root is None else {"root": self.mock.root}
        entry = {"id": self.mock.served, "object": "model", **root}
        return JSONResponse({"object": "list", "data": [entry]})

    async def model(self, request: Request) -> JSONResponse:
        if self.mock.model_info is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse(self.mock.model_info)

    async def info(self, request: Request) -> JSONResponse:
        told = self.mock.accept_length
        state = {} if told is None else {"avg_spec_accept_length": told}
        return JSONResponse({"internal_states": [state]})

    async def metrics(self, request: Request) -> PlainTextResponse:
        positions = BLOCK * self.mock.steps
        return PlainTextResponse(
            "# HELP unmask:decoder_steps_total Steps.\n"
            f'unmask:decoder_steps_total{{model_name="a"}} {self.mock.steps}.0\n'
            f'unmask:computed_positions_total{{model_name="a b"}} {positions}.0\n'
            f"unmask:wasted_positions_total {positions // 4}.0\n"
        )

    async def generate(self, request: Request):
        body = await request.json()
        number = self._note(body, request)
        if (refusal := self._refusal(number, request)) is not None:
            return refusal
        num = body["sampling_params"]["max_new_tokens"]
        if not body["stream"]:
            return JSONResponse([item async for item in self._native(num, number)][-1])
        return self._stream(self._native(num, number))

    async def complete(self, request: Request):
        body = await request.json()
        number = self._note(body, request)
        if (refusal := self._refusal(number, request)) is not None:
            return refusal
        is_chat = request.url.path.endswith("chat/completions")
        if not body["stream"]:
            return JSONResponse(await self._whole(body["max_tokens"], number, is_chat))
        return self._stream(self._openai(body["max_tokens"], number, is_chat))

    async def _whole(self, num: int, number: int, is_chat: bool) -> dict:
        text = "".join([new async for _, _, new in self._pieces(num, number)])
        said = {"message": {"content": text}} if is_chat else {"text": text}
        return {"choices": [{"index": 0, **said}], "usage": _usage(num, self.mock.tells_forwards)}

    def _note(self, body: dict, request: Request) -> int:
        self.mock.log.append(body)
        self.mock.headers.append(dict(request.headers))
        return len(self.mock.log) - 1

    def _refusal(self, number: int, request: Request) -> JSONResponse | None:
        key = self.mock.key
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        if number in self.mock.too_long:
            error = {"message": "use less", "code": "context_length_exceeded"}
            return JSONResponse({"error": error}, 400)
        if number in self.mock.fail:
            return JSONResponse({"error": {"message": "the queue is full"}}, 429)
        return None

    async def _pieces(self, num: int, number: int):
        """(text so far, tokens so far, new text) of every block."""
        if self.mock.answer is not None:
            yield self.mock.answer, num, self.mock.answer
            return
        done = 0
        self.mock.steps += _forwards(num)
        while done < num:
            await asyncio.sleep(self.mock.block_s)
            if number in self.mock.break_off and done:
                raise ConnectionResetError
            new = min(BLOCK, num - done)
            done += new
            yield WORD * done, done, WORD * new

    async def _native(self, num: int, number: int):
        async for text, done, _ in self._pieces(num, number):
            yield {"text": text, "meta_info": self._meta(done)}

    async def _openai(self, num: int, number: int, is_chat: bool):
        async for _, _, new in self._pieces(num, number):
            content = {"delta": {"content": new}} if is_chat else {"text": new}
            yield {"choices": [{"index": 0, **content}]}
        if self.mock.tells_tokens:
            yield {"choices": [], "usage": _usage(num, self.mock.tells_forwards)}

    def _meta(self, num: int) -> dict:
        meta = _usage(num, self.mock.tells_forwards)
        if not self.mock.tells_tokens:
            del meta["completion_tokens"]
        return meta

    def _stream(self, items) -> StreamingResponse:
        async def events():
            try:
                async for item in items:
                    yield f"data: {json.dumps(item)}\n\n"
            except ConnectionResetError:
                return
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


@contextmanager
def serving(app) -> Iterator[str]:
    """The address of a server that runs in a thread until the context ends."""
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < until, "the server does not come up"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def mock_server(**settings) -> Iterator[Mock]:
    """A running mock."""
    mock = Mock(**settings)
    with serving(App(mock).make()) as url:
        mock.url = url
        yield mock
