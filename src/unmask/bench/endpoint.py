"""HTTP client of the serving benchmarks: requests, and the arrival time of each chunk of the reply.

Three kinds of endpoint, as in SGLang's and vLLM's benchmark clients: `sglang` (`/generate`, which reports
the number of tokens with every chunk), `openai` (`/v1/completions`) and `openai-chat`. `bench.latency`
computes the metrics from the recorded times.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from unmask.errors import ConfigError, DependencyError, RemoteError, unknown_name

if TYPE_CHECKING:
    import httpx2

KINDS = {"sglang": "/generate", "openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
"""Path of each kind of endpoint."""

SPELLINGS = {
    "sglang-native": "sglang",
    "sglang-oai": "openai",
    "sglang-oai-chat": "openai-chat",
    "vllm": "openai",
    "vllm-chat": "openai-chat",
}
"""Kind of endpoint by the name that SGLang's and vLLM's clients use."""

MAX_ERROR_CHARS = 300
TOO_LONG = "context_length_exceeded"
"""OpenAI's code of the refusal of a prompt that does not fit the context with its answer."""
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([\t\x20-\x7e]*)")


def kind_of(backend: str) -> str:
    """Return the kind of endpoint of a backend's name. Raises ConfigError for an unknown name."""
    kind = SPELLINGS.get(backend, backend)
    if kind not in KINDS:
        raise unknown_name("backend", backend, {*KINDS, *SPELLINGS})
    return kind


@dataclass(frozen=True)
class Arrival:
    """A chunk of text, `at_s` seconds after its request.

    `num_tokens`: number of tokens of the reply so far; None where the server does not report it.
    """

    at_s: float
    text: str
    num_tokens: int | None = None


@dataclass(frozen=True)
class EndpointReply:
    """Reply to one request.

    `sent_at_s`: on the clock of `time.perf_counter`. `latency_s`: from sending to the last line.
    `num_tokens`: as reported by the server, else (`is_counted` False) as requested. `usage`: usage
    record of the server. `error`: None on success. `is_too_long`: the error is that the prompt does not
    fit. `is_streamed`: False for a reply in one piece, which has no block times.
    """

    sent_at_s: float
    latency_s: float
    arrivals: tuple[Arrival, ...]
    num_tokens: int
    usage: Mapping[str, object] = field(default_factory=dict)
    error: str | None = None
    is_streamed: bool = True
    is_too_long: bool = False
    is_counted: bool = True

    @property
    def text(self) -> str:
        """Text of all chunks."""
        return "".join(item.text for item in self.arrivals)


@dataclass(frozen=True)
class EndpointQuery:
    """A request: text, or token ids where the server accepts them, and the maximum of new tokens."""

    prompt: str | list[int]
    num_tokens: int


def parse_headers(words: Sequence[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` words as headers. Raises ConfigError."""
    headers = {}
    for word in words:
        match = HEADER.fullmatch(word)
        if match is None:
            raise ConfigError(f"header {word!r} must be NAME=VALUE in ASCII, such as X-Team=a")
        headers[match[1]] = match[2]
    return headers


def make_client(headers: Mapping[str, str] | None = None) -> httpx2.AsyncClient:
    """Return a client without limits of connections or time. Raises DependencyError without httpx2."""
    try:
        import httpx2
    except ImportError as error:
        raise DependencyError(
            "talking to a server needs httpx2; install it with: pip install 'unmask[bench]'"
        ) from error
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    # trust_env=False: no proxy of the environment between a benchmark and its server
    return httpx2.AsyncClient(
        headers=dict(headers or {}), limits=limits, timeout=httpx2.Timeout(None), trust_env=False
    )


async def get_json(
    client: httpx2.AsyncClient, url: str, timeout_s: float | None = None
) -> dict[str, object]:
    """Return the JSON object at `url`. Raises RemoteError when there is none."""
    import httpx2

    try:
        response = await client.get(url, timeout=timeout_s)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise RemoteError(f"{url} cannot be reached: {reason(error)}; is the server up?") from None
    if response.status_code != 200:
        raise RemoteError(f"{url}: {refusal(response.status_code, response.text)}")
    try:
        page = response.json()
    except ValueError:
        page = None
    if not isinstance(page, dict):
        raise RemoteError(f"{url} answers no JSON object; is it a server of this kind?")
    return page


def reason(error: Exception) -> str:
    """Return the text of an error, or its class name: some errors of httpx2 have no text."""
    return str(error) or type(error).__name__


def refusal(status: int, body: str) -> str:
    """Return the status of a refused request and the message inside the usual JSON envelopes."""
    try:
        page = json.loads(body)
        message = page.get("error", page.get("detail", body))
        message = message.get("message", message) if isinstance(message, dict) else message
    except (ValueError, AttributeError):
        message = body
    text = f"status {status}: {str(message).strip()[:MAX_ERROR_CHARS] or 'no reason given'}"
    return f"{text}; give the server's key, --api-key or UNMASK_API_KEY" if status == 401 else text


def error_code(body: str) -> object:
    """Return the code of a refusal in OpenAI's form; None if there is none."""
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError, RecursionError):
        return None
    return error.get("code") if isinstance(error, dict) else None


@dataclass(frozen=True)
class Endpoint:
    """Address and options of requests.

    `extra`: fields of every request body, with precedence over all others. `stream`: False requests
    replies in one piece.
    """

    kind: str
    url: str
    model: str
    ignore_eos: bool = False
    temperature: float = 0.0
    extra: Mapping[str, object] = field(default_factory=dict)
    stream: bool = True

    def body(self, query: EndpointQuery) -> dict[str, object]:
        """Return the JSON of a request."""
        if self.kind == "sglang":
            extra = dict(self.extra)
            sampling = {
                "temperature": self.temperature,
                "max_new_tokens": query.num_tokens,
                "ignore_eos": self.ignore_eos,
            }
            more = extra.pop("sampling_params", {})
            if not isinstance(more, Mapping):
                raise ConfigError(f"sampling_params={more!r} of the extra body must be an object")
            key = "text" if isinstance(query.prompt, str) else "input_ids"
            parts = {"sampling_params": {**sampling, **more}, "stream": self.stream}
            return {key: query.prompt, **parts, **extra}
        body: dict[str, object] = {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": query.num_tokens,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.kind == "openai":
            body["prompt"] = query.prompt
        else:
            body["messages"] = [{"role": "user", "content": query.prompt}]
        if self.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self.extra}

    async def send(self, client: httpx2.AsyncClient, query: EndpointQuery) -> EndpointReply:
        """Send a request and record the chunks of its reply; a failure is in the reply's `error`."""
        import httpx2

        reader = _ReplyReader(self.kind, query.num_tokens, self.stream)
        try:
            async with client.stream("POST", self.url, json=self.body(query)) as response:
                if response.status_code != 200:
                    body = (await response.aread()).decode("utf-8", "replace")
                    reader.is_too_long = error_code(body) == TOO_LONG
                    return reader.reply(refusal(response.status_code, body))
                if not self.stream:
                    reader.read_body(await response.aread())
                    return reader.reply(None)
                async for line in response.aiter_lines():
                    reader.read_line(line)
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            return reader.reply(reason(error))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return reader.reply(f"an answer of another form than expected ({error!r})")
        return reader.reply(None)


class _Content(TypedDict, total=False):
    content: str | None


class _Choice(TypedDict, total=False):
    text: str | None
    delta: _Content | None
    message: _Content | None


class _Usage(TypedDict, total=False):
    completion_tokens: int


class _Event(TypedDict, total=False):
    """An event of any kind of endpoint."""

    error: dict[str, object] | str | None
    text: str | None
    meta_info: _Usage | None
    usage: _Usage | None
    choices: list[_Choice]


class _ReplyReader:
    """Reader of one reply: a stream of server-sent events, or a body."""

    def __init__(self, kind: str, num_tokens: int, is_streamed: bool) -> None:
        self.kind, self.num_tokens, self.is_streamed = kind, num_tokens, is_streamed
        self.sent_at = time.perf_counter()
        self.latency, self.text, self.is_done = 0.0, "", False
        self.arrivals: list[Arrival] = []
        self.usage: _Usage = {}
        self.error: str | None = None
        self.is_too_long = self.is_counted = False

    def read_line(self, line: str) -> None:
        """Read a line of the stream; comments and other fields of the protocol are ignored."""
        now = time.perf_counter() - self.sent_at
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        self.latency = now
        if data == "[DONE]":
            self.is_done = True
            return
        self._read(now, json.loads(data))

    def read_body(self, body: bytes) -> None:
        """Read a reply in one piece."""
        self.latency = time.perf_counter() - self.sent_at
        self._read(self.latency, json.loads(body))
        self.is_done = True

    def _read(self, now: float, event: _Event) -> None:
        error = event.get("error")
        if error:
            text = error.get("message", error) if isinstance(error, dict) else error
            self.error = str(text)[:MAX_ERROR_CHARS]
        elif self.kind == "sglang":
            self._read_sglang(now, event)
        else:
            self._read_openai(now, event)

    def _read_sglang(self, now: float, event: _Event) -> None:
        text, meta = event.get("text") or "", event.get("meta_info") or {}
        if meta:
            self.usage = meta
            self._count(meta)
        if text:
            if not text.startswith(self.text):
                raise ValueError("the text so far has changed")
            num_tokens = meta.get("completion_tokens")
            self.arrivals.append(Arrival(now, text[len(self.text) :], num_tokens))
            self.text = text

    def _read_openai(self, now: float, event: _Event) -> None:
        usage = event.get("usage")
        if usage:
            self.usage = usage
            self._count(usage)
        for choice in event.get("choices", [])[:1]:
            message = choice.get("delta") or choice.get("message") or {}
            text = choice.get("text") or message.get("content") or ""
            if text:
                self.arrivals.append(Arrival(now, text))

    def _count(self, usage: _Usage) -> None:
        if "completion_tokens" in usage:
            self.num_tokens, self.is_counted = usage["completion_tokens"], True

    def reply(self, error: str | None) -> EndpointReply:
        """Return the reply; a stream without its end mark is an error."""
        error = (
            error or self.error or (None if self.is_done else "the answer broke off before its end")
        )
        return EndpointReply(
            sent_at_s=self.sent_at,
            latency_s=self.latency,
            arrivals=tuple(self.arrivals),
            num_tokens=self.num_tokens,
            usage=self.usage,
            error=error,
            is_streamed=self.is_streamed,
            is_too_long=self.is_too_long,
            is_counted=self.is_counted,
        )
