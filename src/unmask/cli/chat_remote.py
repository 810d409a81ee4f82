"""Client of a server for `unmask chat`; draws the canvas live if the server streams it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.bench.endpoint import reason, refusal
from unmask.bench.serve import Server
from unmask.cli.options import DecodeOptions
from unmask.errors import DependencyError, RemoteError, unknown_name
from unmask.knobs import read_value
from unmask.method import CACHE_PREFIX, split_cache_keys

if TYPE_CHECKING:
    from rich.console import Console


DRAWN_SEED = -1
"""Value of `seed` for a seed that the server draws."""


@dataclass(frozen=True)
class ChatAnswer:
    """A turn of the model, and its statistics as a line of text."""

    text: str
    facts: str


class Remote:
    """An OpenAI-compatible server; unmask's own also sends its canvas and takes decoders."""

    def __init__(self, base_url: str, api_key: str | None, fps: float | None) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise DependencyError(
                "talking to a server needs httpx2; install it with: pip install 'unmask[bench]'"
            ) from error
        self.url, self.fps = Server(base_url).url, fps
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.client = httpx2.Client(headers=headers, timeout=httpx2.Timeout(None, connect=20))
        try:
            self.model = self._first_model()
        except RemoteError:
            self.close()
            raise
        try:
            self.schema = self._get("/v1/schema")
        except RemoteError:
            self.schema = None  # not an unmask server: it streams text only and has no decoders

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _first_model(self) -> str:
        models = self._get("/v1/models")
        try:
            return str(models["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise RemoteError(f"{self.url}/v1/models lists no model") from None

    def _get(self, path: str) -> Any:
        import httpx2

        try:
            response = self.client.get(self.url + path)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RemoteError(
                f"{self.url} cannot be reached: {reason(error)}; is the server up?"
            ) from None
        if response.status_code != 200:
            raise RemoteError(f"{self.url}{path}: {refusal(response.status_code, response.text)}")
        try:
            return response.json()
        except ValueError:
            raise RemoteError(f"{self.url}{path} answers no JSON") from None

    def check(self, options: DecodeOptions) -> None:
        """Raise for decoders and caches that the server lacks; it checks their knobs itself."""
        if self.schema is None:
            if options.method.values.keys() & {"decoder", "cache"}:
                raise RemoteError(
                    f"{self.url} is not an unmask server and has no decoders to choose from; leave decoder "
                    f"and cache out"
                )
            return
        for kind in ("decoder", "cache"):
            name = str(options.method.values.get(kind, ""))
            names = [item["name"] for item in self.schema[f"{kind}s"]]
            if name and name.partition("(")[0] not in names:
                raise unknown_name(kind, name, names)

    def body(
        self, messages: list[dict[str, str]], options: DecodeOptions, live: bool
    ) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {"model": options.model or self.model, "messages": messages}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if live and self.schema is not None:
            body["stream_mode"] = "canvas"
        knobs = dict(options.method.values)
        for key in ("decoder", "cache"):
            if key in knobs:
                body[key] = knobs.pop(key)
        if options.gen_length is not None:
            body["max_tokens"] = options.gen_length
        if options.seed != DRAWN_SEED:
            body["seed"] = options.seed
        values = {key: read_value(value) for key, value in knobs.items()}
        own, inside = split_cache_keys(values)
        cached = {key.removeprefix(CACHE_PREFIX): inside[key] for key in inside}
        if self.schema is None:
            return body | own
        if own:
            body["decoder_args"] = own
        if cached:
            body["cache_args"] = cached
        return body

    def answer(
        self, messages: list[dict[str, str]], options: DecodeOptions, console: Console | None
    ) -> ChatAnswer:
        """Request an answer and draw its canvas. Raises RemoteError."""
        from unmask.engine.token_text import TokenTexts
        from unmask.view.terminal import LiveView, frame_status, frame_text

        self.check(options)
        began, text = time.perf_counter(), ""
        usage: dict[str, Any] = {}
        with ExitStack() as stack:
            view = None
            if console is not None and self.schema is not None:
                live = LiveView(console, TokenTexts(None), frozenset(), self.fps)
                view = stack.enter_context(live)
            for chunk in self._events(self.body(messages, options, view is not None)):
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ())[:1]:
                    frame = choice.get("canvas")
                    if frame is not None and view is not None:
                        view.show_text(frame_text(frame), frame_status(frame))
                    elif frame is None:
                        text += (choice.get("delta") or {}).get("content") or ""
        return ChatAnswer(text, _facts(usage, time.perf_counter() - began))

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the stream's events. Raises RemoteError."""
        import httpx2

        url = f"{self.url}/v1/chat/completions"
        try:
            with self.client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    text = response.read().decode("utf-8", "replace")
                    raise RemoteError(f"{self.url}: {refusal(response.status_code, text)}")
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:"):
                        continue
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if chunk.get("error"):
                        error = chunk["error"]
                        message = error.get("message", error) if isinstance(error, dict) else error
                        raise RemoteError(f"{self.url}: {message}")
                    yield chunk
        except (httpx2.HTTPError, ValueError) as error:
            raise RemoteError(f"{self.url}: {reason(error)}") from None
        raise RemoteError(f"{self.url}: the answer broke off before its end")


def _facts(usage: dict[str, Any], seconds: float) -> str:
    parts = [f"{usage['completion_tokens']} tokens"] if "completion_tokens" in usage else []
    if usage.get("num_forwards"):
        parts.append(f"{usage['num_forwards']} forwards")
        parts.append(f"{usage.get('tokens_per_forward', 0):.2f} tokens per forward")
    return " | ".join([*parts, f"{seconds:.2f} s"])
