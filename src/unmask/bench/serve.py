"""Load generator of the serving benchmark: requests at a given rate, their replies and counters."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.bench.endpoint import Endpoint, EndpointQuery, EndpointReply, get_json, make_client
from unmask.bench.workload import WorkItem
from unmask.errors import ConfigError, RemoteError
from unmask.models import BUNDLED

if TYPE_CHECKING:
    import httpx2

WARM_UP_TOKENS = 32
PAGE_TIMEOUT_S = 10.0
"""Maximum time in seconds for a page that describes the model."""

Watch = Callable[[EndpointReply], None]
"""Callback for each completed reply."""


@dataclass(frozen=True)
class Traffic:
    """Arrival process of the requests.

    `request_rate`: requests per second; inf sends all at once. Intervals are exponential (a Poisson
    process) with `burstiness` 1, else gamma: below 1 more bursty, above 1 more regular. `max_concurrency`:
    maximum number of requests in flight (None: no limit). `warm_ups`: untimed requests before the first.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    warm_ups: int = 1

    def check(self) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("request_rate", "burstiness"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{name}={value:g} must be above 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency={self.max_concurrency} must be at least 1")
        if self.warm_ups < 0:
            raise ConfigError(f"warm_ups={self.warm_ups} must not be negative")
        if self.burstiness != 1 and math.isinf(self.request_rate):
            raise ConfigError(
                f"burstiness={self.burstiness:g} has no effect when all requests go at once; give a "
                f"request_rate"
            )

    def interval_s(self, rng: np.random.RandomState) -> float:
        """Draw the interval before the next request, in seconds."""
        if math.isinf(self.request_rate):
            return 0.0
        if self.burstiness == 1:
            return float(rng.exponential(1 / self.request_rate))
        return float(rng.gamma(self.burstiness, 1 / (self.request_rate * self.burstiness)))


COUNTERS = {
    "steps": "unmask:decoder_steps",
    "positions": "unmask:computed_positions",
    "wasted": "unmask:wasted_positions",
}
"""Counters of the server's metrics page: forwards, computed positions, and those after an end of text."""


@dataclass(frozen=True)
class LoadResult:
    """Replies in the order of sending; `duration_s`: from the first request to the last line.

    `counters`: increments of those `COUNTERS` that the server has, by any request in that time.
    """

    replies: tuple[EndpointReply, ...]
    duration_s: float
    accept_length: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)


async def warm_up(
    endpoint: Endpoint, query: EndpointQuery, number: int, client: httpx2.AsyncClient
) -> None:
    """Send a short version of a request `number` times. Raises RemoteError when all of them fail."""
    small = EndpointQuery(query.prompt, min(query.num_tokens, WARM_UP_TOKENS))
    warm = await asyncio.gather(*(endpoint.send(client, small) for _ in range(number)))
    if warm and all(reply.error is not None for reply in warm):
        raise RemoteError(f"{endpoint.url} does not answer the warm-up request: {warm[0].error}")


async def run(
    endpoint: Endpoint,
    items: Sequence[WorkItem],
    traffic: Traffic,
    rng: np.random.RandomState,
    client: httpx2.AsyncClient,
    watch: Watch = lambda reply: None,
) -> LoadResult:
    """Send all requests at the rate of the traffic and wait for the replies."""
    limit = asyncio.Semaphore(traffic.max_concurrency or len(items))

    async def send(query: EndpointQuery) -> EndpointReply:
        async with limit:
            reply = await endpoint.send(client, query)
        watch(reply)
        return reply

    began = time.perf_counter()
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(send(item.query)))
        if interval := traffic.interval_s(rng):
            await asyncio.sleep(interval)
    replies = await asyncio.gather(*tasks)
    return LoadResult(tuple(replies), time.perf_counter() - began)


def _first_item(page: dict[str, object], key: str) -> dict[str, object]:
    """Return the first of the objects listed under a key; empty when there is none."""
    items = page.get(key)
    first = items[0] if isinstance(items, list) and items else None
    return first if isinstance(first, dict) else {}


async def server_model(client: httpx2.AsyncClient, base_url: str) -> str:
    """Return the id of the first model that a server lists. Raises RemoteError."""
    first = _first_item(await get_json(client, f"{base_url}/v1/models"), "data")
    if "id" not in first:
        raise RemoteError(f"{base_url}/v1/models lists no model")
    return str(first["id"])


async def local_tokenizers(client: httpx2.AsyncClient, base_url: str, model: str) -> list[str]:
    """Return the tokenizers that a server names and this machine has: bundled names and folders.

    Of SGLang's servers and ours it is `tokenizer_path`, of vLLM's the `root` of the served model. A
    relative path would be that of another working directory, and a hub id a download.
    """
    names: list[object] = []
    for path in ("/get_model_info", "/model_info"):
        page = await _page(client, base_url + path)
        names += [page.get("tokenizer_path"), page.get("model_path")]
    listed = (await _page(client, f"{base_url}/v1/models")).get("data")
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and item.get("id") == model:
            names.append(item.get("root"))
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and _is_here(name)))


async def _page(client: httpx2.AsyncClient, url: str) -> dict[str, object]:
    """Return a page that not every server has; empty without it."""
    try:
        return await get_json(client, url, PAGE_TIMEOUT_S)
    except RemoteError:
        return {}


def _is_here(name: str) -> bool:
    try:
        return name in BUNDLED or (Path(name).is_absolute() and Path(name).is_dir())
    except (OSError, ValueError):  # too long, or a null byte
        return False


@dataclass(frozen=True)
class Server:
    """Address of a server, and the served name of the model (None: the first that it lists)."""

    base_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    api_key: str | None = None
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request. Raises ConfigError for two keys."""
        if self.api_key is None:
            return dict(self.more_headers)
        if any(name.lower() == "authorization" for name in self.more_headers):
            raise ConfigError("the API key sets the header Authorization too; give one of them")
        return {"Authorization": f"Bearer {self.api_key}", **self.more_headers}

    @property
    def url(self) -> str:
        """Address without a path. Raises ConfigError."""
        url = self.base_url or f"http://{self.host.removeprefix('http://')}:{self.port}"
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={url!r} must begin with http:// or https://")
        return url.rstrip("/").removesuffix("/v1")

    def model_id(self) -> str:
        """Return the name of the model, requested from the server if necessary. Raises RemoteError."""
        if self.model is not None:
            return self.model

        async def request() -> str:
            async with make_client(self.headers) as client:
                return await server_model(client, self.url)

        return asyncio.run(request())

    def tokenizers(self, model: str) -> list[str]:
        """Return the tokenizers of a served model that the server names and this machine has."""

        async def request() -> list[str]:
            async with make_client(self.headers) as client:
                return await local_tokenizers(client, self.url, model)

        return asyncio.run(request())


async def accept_length(client: httpx2.AsyncClient, base_url: str) -> float | None:
    """Return SGLang's `avg_spec_accept_length` (here: tokens per forward); None if not reported."""
    try:
        page = await get_json(client, f"{base_url}/get_server_info")
    except RemoteError:
        return None  # not every server has this page, which fills one row of the report
    value = _first_item(page, "internal_states").get("avg_spec_accept_length")
    return float(value) if isinstance(value, (int, float)) and value else None


async def read_counters(client: httpx2.AsyncClient, base_url: str) -> dict[str, float]:
    """Return those of `COUNTERS` that the server's `/metrics` has, summed over labels."""
    import httpx2

    values: dict[str, float] = {}
    try:
        page = await client.get(f"{base_url}/metrics")
    except httpx2.HTTPError:
        return values  # not every server has this page
    keys = {name: key for key, name in COUNTERS.items()}
    for line in page.text.splitlines() if page.status_code == 200 else ():
        key = keys.get(line.partition("{")[0].partition(" ")[0].removesuffix("_total"))
        if key is not None:
            values[key] = values.get(key, 0.0) + float(line.rpartition(" ")[2])
    return values


def measure(
    endpoint: Endpoint,
    base_url: str,
    items: Sequence[WorkItem],
    traffic: Traffic,
    rng: np.random.RandomState,
    headers: Mapping[str, str] | None = None,
    watch: Watch = lambda reply: None,
) -> LoadResult:
    """Warm up and run the benchmark in an event loop of its own. Raises RemoteError and ConfigError."""
    traffic.check()

    async def go() -> LoadResult:
        async with make_client(headers) as client:
            await warm_up(endpoint, items[0].query, traffic.warm_ups, client)
            before = await read_counters(client, base_url)
            result = await run(endpoint, items, traffic, rng, client, watch)
            after = await read_counters(client, base_url)
            return replace(
                result,
                accept_length=await accept_length(client, base_url),
                counters={key: after[key] - value for key, value in before.items() if key in after},
            )

    return asyncio.run(go())
