"""Requests to a server, with the time at which every piece of the answer arrived.

Three ways to ask, after SGLang's and vLLM's benchmark clients: `sglang` (`/generate`, which tells the
number of tokens with every piece), `openai` (`/v1/completions`) and `openai-chat`. What is recorded is
raw; `bench.latency` turns it into numbers.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unmask.errors import ConfigError, DependencyError, RemoteError, unknown_name

if TYPE_CHECKING:
    import httpx2

KINDS = {"sglang": "/generate", "openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
"""Ways to ask, with their paths."""

SPELLINGS = {
    "sglang-native": "sglang",
    "sglang-oai": "openai",
    "sglang-oai-chat": "openai-chat",
    "vllm": "openai",
    "vllm-chat": "openai-chat",
}
"""The other clients' names of them."""

MAX_ERROR_CHARS = 300
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([\t\x20-\x7e]*)")


def kind_of(backend: str) -> str:
    """The way to ask that a backend's name stands for. Raises ConfigError for an unknown name."""
    kind = SPELLINGS.get(backend, backend)
    if kind not in KINDS:
        raise unknown_name("backend", backend, {*KINDS, *SPELLINGS})
    return kind


@dataclass(frozen=True)
class Arrival:
    """A piece of text that came `at_s` seconds after its request; `num_tokens` of all so far, if told."""

    at_s: float
    text: str
    num_tokens: int | None = None


@dataclass(frozen=True)
class EndpointReply:
    """What came of one request.

    `sent_at_s` on the clock of `time.perf_counter`; `latency_s` until the last line; `num_tokens` as the
    server says, else as they were asked for; `usage` the server's own record; `error` None when all went
    well. `in_pieces`: it was asked for as a stream; else it came at once, and says nothing of its blocks.
    """

    sent_at_s: float
    latency_s: float
    arrivals: tuple[Arrival, ...]
    num_tokens: int
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    in_pieces: bool = True

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(item.text for item in self.arrivals)


@dataclass(frozen=True)
class EndpointQuery:
    """A request: text, or token ids where the server takes them; `num_tokens` at most are generated."""

    prompt: str | list[int]
    num_tokens: int


def parse_headers(words: Sequence[str]) -> dict[str, str]:
    """`X-Team=a` as a header's name and value. Raises ConfigError."""
    found = {}
    for word in words:
        match = HEADER.fullmatch(word)
        if match is None:
            raise ConfigError(f"header {word!r} must be NAME=VALUE in ASCII, such as X-Team=a")
        found[match[1]] = match[2]
    return found


def make_client(headers: Mapping[str, str] | None = None) -> httpx2.AsyncClient:
    """A client without a bound on its connections or on time. Raises DependencyError without httpx2."""
    try:
        import httpx2
    except ImportError as error:
        raise DependencyError(
            "talking to a server needs httpx2; install it with: pip install 'unmask[bench]'"
        ) from error
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    # trust_env=False: a proxy of the environment must not stand between a benchmark and its server
    return httpx2.AsyncClient(
        headers=dict(headers or {}), limits=limits, timeout=httpx2.Timeout(None), trust_env=False
    )


async def get_json(client: httpx2.AsyncClient, url: str) -> Any:
    """The JSON at `url`. Raises RemoteError when there is none."""
    import httpx2

    try:
        response = await client.get(url)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise RemoteError(f"{url} cannot be reached: {reason(error)}; is the server up?") from None
    if response.status_code != 200:
        raise RemoteError(f"{url}: {refusal(response.status_code, response.text)}")
    try:
        return response.json()
    except ValueError:
        raise RemoteError(f"{url} answers no JSON; is it a server of this kind?") from None


def reason(error: Exception) -> str:
    """An error in words; some of httpx2's have no text of their own."""
    return str(error) or type(error).__name__


def refusal(status: int, body: str) -> str:
    """What a refused request is told: the status, and the message inside the usual envelopes."""
    message: Any = body
    try:
        found = json.loads(body)
        message = found.get("error", found.get("detail", body))
        message = message.get("message", message) if isinstance(message, dict) else message
    except (ValueError, AttributeError):
        pass
    told = f"status {status}: {str(message).strip()[:MAX_ERROR_CHARS] or 'no reason given'}"
    return f"{told}; give the server's key, --api-key or UNMASK_API_KEY" if status == 401 else told


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask; `extra` goes into every body and wins over what is put there.

    `stream` False asks for answers in one piece.
    """

    kind: str
    url: str
    model: str
    ignore_eos: bool = False
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True

    def body(self, ask: EndpointQuery) -> dict[str, Any]:
        """The request's JSON."""
        if self.kind == "sglang":
            sampling: dict[str, Any] = {
                "temperature": self.temperature,
                "max_new_tokens": ask.num_tokens,
                "ignore_eos": self.ignore_eos,
            }
            key = "text" if isinstance(ask.prompt, str) else "input_ids"
            extra = dict(self.extra)
            sampling |= extra.pop("sampling_params", {})
            return {key: ask.prompt, "sampling_params": sampling, "stream": self.stream, **extra}
        found: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": ask.num_tokens,
            "stream": self.stream,
        }
        if self.stream:
            found["stream_options"] = {"include_usage": True}
        if self.kind == "openai":
            found["prompt"] = ask.prompt
        else:
            found["messages"] = [{"role": "user", "content": ask.prompt}]
        if self.ignore_eos:
            found["ignore_eos"] = True
        return {**found, **self.extra}

    async def send(self, client: httpx2.AsyncClient, ask: EndpointQuery) -> EndpointReply:
        """Ask, and note what arrives. What goes wrong is in the reply's `error`."""
        import httpx2

        heard = _Heard(self.kind, ask.num_tokens, self.stream)
        try:
            async with client.stream("POST", self.url, json=self.body(ask)) as response:
                if response.status_code != 200:
                    body = (await response.aread()).decode("utf-8", "replace")
                    return heard.reply(refusal(response.status_code, body))
                if not self.stream:
                    heard.whole(await response.aread())
                    return heard.reply(None)
                async for line in response.aiter_lines():
                    heard.line(line)
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            return heard.reply(reason(error))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return heard.reply(f"an answer of another form than expected ({error!r})")
        return heard.reply(None)


class _Heard:
    """Listens to one answer: a stream of server-sent events, or a body."""

    def __init__(self, kind: str, num_tokens: int, in_pieces: bool) -> None:
        self.kind, self.num_tokens, self.in_pieces = kind, num_tokens, in_pieces
        self.sent_at = time.perf_counter()
        self.latency, self.text, self.is_done = 0.0, "", False
        self.arrivals: list[Arrival] = []
        self.usage: dict[str, Any] = {}
        self.error: str | None = None

    def line(self, line: str) -> None:
        """Take a line in; comments and other fields of the protocol say nothing."""
        now = time.perf_counter() - self.sent_at
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        self.latency = now
        if data == "[DONE]":
            self.is_done = True
            return
        self._take(now, json.loads(data))

    def whole(self, body: bytes) -> None:
        """Take in an answer in one piece."""
        self.latency = time.perf_counter() - self.sent_at
        self._take(self.latency, json.loads(body))
        self.is_done = True

    def _take(self, now: float, found: dict[str, Any]) -> None:
        if found.get("error"):
            error = found["error"]
            text = error.get("message", error) if isinstance(error, dict) else error
            self.error = str(text)[:MAX_ERROR_CHARS]
        elif self.kind == "sglang":
            self._native(now, found)
        else:
            self._openai(now, found)

    def _native(self, now: float, found: dict[str, Any]) -> None:
        text, meta = found.get("text") or "", found.get("meta_info") or {}
        if meta:
            self.usage = meta
            self.num_tokens = meta.get("completion_tokens", self.num_tokens)
        if text:
            if not text.startswith(self.text):
                raise ValueError("the text so far has changed")
            self.arrivals.append(Arrival(now, text[len(self.text) :], meta["completion_tokens"]))
            self.text = text

    def _openai(self, now: float, found: dict[str, Any]) -> None:
        if found.get("usage"):
            self.usage = found["usage"]
            self.num_tokens = self.usage.get("completion_tokens", self.num_tokens)
        for choice in found.get("choices", ())[:1]:
            message = choice.get("delta") or choice.get("message") or {}
            text = choice.get("text") or message.get("content") or ""
            if text:
                self.arrivals.append(Arrival(now, text))

    def reply(self, error: str | None) -> EndpointReply:
        """What was heard; a stream without its end mark was broken off."""
        error = error or self.error or (None if self.is_done else "the answer was broken off")
        return EndpointReply(
            sent_at_s=self.sent_at,
            latency_s=self.latency,
            arrivals=tuple(self.arrivals),
            num_tokens=self.num_tokens,
            usage=self.usage,
            error=error,
            in_pieces=self.in_pieces,
        )
