"""The page's server without a model: the static files behind the real guard, a schema, scripted canvases.

A request's answer is `WORDS`, or for an infill its blanks filled with "x". Decoder `threshold` writes four
positions a forward, any other one; `wino` opens its first position again once. `log` keeps the bodies.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import dataclass, field

from mock_server import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from unmask.pictures.page import PLAYER
from unmask.server.auth import AccessMiddleware
from unmask.server.picture_route import PictureRequest, picture_of
from unmask.server.request_parsing import parse_body
from unmask.server.settings import STATIC, Access, ServerSettings

TOKEN = "a-random-token"
HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
WORDS = ["So", " the", "\n", "answer", " is", HOSTILE, " 17", " pens", ".", " It", " is", " so"]
SURE = (0.95, 0.2, 0.5)


def _knob(name, type_, default, help_, **more):
    found = {"name": name, "type": type_, "default": default, "help": help_, "is_common": True}
    return found | more


def _decoder(name, *knobs, **more):
    return {"name": name, "title": f"The {name} rule", "source": "arXiv:0000.00000", **more} | {
        "knobs": list(knobs)
    }


THRESHOLD = _knob("threshold", "float", 0.9, "1: one at a time; 0: all at once", min=0, max=1)
THRESHOLD["range"] = "in [0, 1]"
RARE = {"is_common": False, "range": "> 0", "above": 0}
DRAFTS = [_knob(f"draft_{name}", "float", 5, "how many", **RARE) for name in "abcd"]
SCHEMA = {
    "model": {"id": "demo", "family": "llada", "block_size": None, "max_length": 1024},
    "defaults": {"decoder": "vanilla", "knobs": {}, "cache": "none", "cache_args": {}},
    "decoders": [
        _decoder("prophet", _knob("inner", "str", None, "the decoder inside"), wraps=True),
        _decoder("threshold", THRESHOLD, _knob("sizes", "list", [1, 2], "a list", of="int")),
        _decoder("vanilla", _knob("steps", "int", None, "forwards", nullable=True)),
        _decoder("wino", *DRAFTS, _knob("wide", "float", 0.6, "first")),
    ],
    "caches": [
        {"name": "block_causal", "title": "Blocks", "exact": True, "knobs": []}
        | {"refused": "not for this model"},
        {"name": "dual", "title": "Both sides", "exact": False}
        | {"knobs": [_knob("period", "int", 0, "forwards between refreshes")]},
        {"name": "none", "title": "No cache", "exact": True, "knobs": []},
    ],
    "shared": [
        _knob("temperature", "float", 0.0, "0: the likeliest token"),
        _knob("vocabulary", "choice", None, "what counts", choices=["none", "static"]),
        _knob("compat", "bool", False, "repeat quirks"),
    ],
}


@dataclass
class Page:
    """What a test sets, and finds."""

    step_s: float = 0.0
    key: str | None = None
    is_public: bool = True
    """Whether the page's files need no key."""
    sets_cookies: bool = True
    refuses: str | None = None
    param: str | None = None
    """The field that a refusal names."""
    refuses_pictures: str | None = None
    status: int = 400
    breaks_off: bool = False
    has_template: bool = True
    log: list[dict] = field(default_factory=list)
    url: str = ""

    def set(self, **settings) -> None:
        """Begin anew, with these settings and the defaults of the others."""
        fresh = Page(**settings, url=self.url)
        vars(self).update(vars(fresh))


def _position(text, sure=None, *, new=False, fixed=None, **more):
    found = {"token": 1, "text": text, "confidence": sure, "open": False, "new": new, **more}
    return found | ({} if fixed is None else {"fixed": fixed})


def _older(position):
    return {key: item for key, item in position.items() if key != "alternatives"} | {"new": False}


def _open(**more):
    return {"token": None, "text": "", "confidence": None, "open": True, "new": False, **more}


def _positions(body) -> list[dict]:
    """All positions as they are at the end."""
    if "parts" in body:
        opening = _position("<|startoftext|>", fixed=True, special=True)
        return [opening] + [
            _position(word, None if isinstance(part, str) else 0.9, fixed=isinstance(part, str))
            for part in body["parts"]
            for word in ([part] if isinstance(part, str) else ["x"] * part)
        ]
    words = WORDS[: body["max_tokens"]]
    rest = body["max_tokens"] - len(words)
    ends = [_position("<end>", 0.99, end=True) for _ in range(rest)]
    return [_position(word, SURE[i % 3]) for i, word in enumerate(words)] + ends


def frames(body):
    """The canvas before the first forward and after each."""
    final = _positions(body)
    todo = [i for i, position in enumerate(final) if not position.get("fixed")]
    a_step = 4 if body["decoder"] == "threshold" else 1
    rounds = [todo[i : i + a_step] for i in range(0, len(todo), a_step)]
    takes_back = body["decoder"] == "wino"
    if takes_back:
        rounds.append(todo[:1])
    shown = [position if position.get("fixed") else _open() for position in final]
    yield 0, shown
    for number, chosen in enumerate(rounds, 1):
        shown = [_older(position) for position in shown]
        for i in chosen:
            shown[i] = {**final[i], "new": True, "alternatives": [["<b>", 0.25], ["x", 0.125]]}
        if takes_back and number == 3:
            shown[todo[0]] = _open(taken_back=True)
        yield number, shown


class App:
    """The handlers."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def make(self):
        """The application, behind the real guard."""
        posts = ["/v1/completions", "/v1/chat/completions", "/v1/infill"]
        app = Starlette(
            routes=[
                Route("/", self.index),
                Route("/v1/models", self.models),
                Route("/v1/schema", self.schema),
                Route("/openapi.json", self.openapi),
                Route("/v1/picture", self.picture, methods=["POST"]),
                *(Route(path, self.decode, methods=["POST"]) for path in posts),
                Route(
                    "/static/player.html", lambda _: FileResponse(PLAYER, media_type="text/plain")
                ),
                Mount("/static", StaticFiles(directory=STATIC)),
            ]
        )

        async def guarded(scope, receive, send):
            async def send_some(message):
                if not self.page.sets_cookies and "headers" in message:
                    message["headers"] = [h for h in message["headers"] if h[0] != b"set-cookie"]
                await send(message)

            settings = ServerSettings(("demo",), access=self._access())
            await AccessMiddleware(app, settings, lambda route, status: None)(
                scope, receive, send_some
            )

        return guarded

    def _access(self) -> Access:
        if self.page.key is None:
            return Access()
        digest = Access.digest(self.page.key)
        return Access(digest, is_page_public=self.page.is_public, page_token=TOKEN)

    async def index(self, request: Request) -> FileResponse:
        return FileResponse(STATIC / "index.html")

    async def schema(self, request: Request) -> JSONResponse:
        model = {**SCHEMA["model"], "has_chat_template": self.page.has_template}
        return JSONResponse({**SCHEMA, "model": model})

    async def picture(self, request: Request) -> Response:
        body = parse_body(PictureRequest, await request.json(), takes_knobs=False)[0]
        if self.page.refuses_pictures:
            return JSONResponse({"error": {"message": self.page.refuses_pictures}}, 400)
        return Response(picture_of(body), media_type="image/svg+xml")

    async def openapi(self, request: Request) -> JSONResponse:
        return JSONResponse({"paths": {"/v1/infill": {"post": {"summary": "Fill the blanks."}}}})

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "demo"}]})

    async def decode(self, request: Request):
        body = await request.json()
        self.page.log.append(body)
        if self.page.refuses is not None:
            error = {"error": {"message": self.page.refuses, "param": self.page.param}}
            return JSONResponse(error, self.page.status)
        return StreamingResponse(self._events(body, request), media_type="text/event-stream")

    async def _events(self, body, request: Request):
        is_chat = request.url.path.endswith("chat/completions")

        def event(value) -> str:
            return f"data: {json.dumps(value)}\n\n"

        body = {"decoder": "vanilla", "cache": "none", "max_tokens": 16} | body
        number, positions, watched = 0, _positions(body), body.get("stream_mode") == "canvas"
        for number, positions in frames(body) if watched else ():
            await asyncio.sleep(self.page.step_s)
            num_open = sum(position["open"] for position in positions)
            frame = {"forward": number, "num_settled": 0, "num_open": num_open, "slots": positions}
            choice = {"index": 0, "text": "ignored", "canvas": frame, "finish_reason": None}
            yield event({"choices": [choice]})
            if self.page.breaks_off and number == 2:
                return
        final = [_older(position) for position in positions]
        if watched:
            frame = {"forward": number, "num_settled": 0, "num_open": 0, "slots": final}
            yield event({"choices": [{"index": 0, "text": "", "canvas": frame}]})
        text = "".join(
            position["text"] for position in final if not position.keys() & {"end", "special"}
        )
        content = {"delta": {"content": text}} if is_chat else {"text": text}
        last = {"choices": [{"index": 0, **content, "finish_reason": "stop"}]}
        if body.get("return_trace"):
            last["choices"][0] |= {
                "trace": [{"committed": []}] * number,
                "trace_header": {"seed": 3},
            }
        yield event(last | {"unmask": {"cache_exact": body["cache"] == "none"}})
        tokens = len([position for position in final if "end" not in position])
        usage = {"completion_tokens": tokens, "num_forwards": number}
        usage["tokens_per_forward"] = tokens / max(1, number)
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"


@contextmanager
def mock_page():
    """A running page."""
    page = Page()
    with serving(App(page).make()) as url:
        page.url = url
        yield page
