"""A serving benchmark: requests sent at a rate, their replies, and the numbers made of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.bench.endpoint import Endpoint, EndpointQuery, EndpointReply, get_json, make_client
from unmask.bench.workload import WorkItem
from unmask.errors import ConfigError, RemoteError

if TYPE_CHECKING:
    import httpx2

WARM_UP_TOKENS = 32

Watch = Callable[[EndpointReply], None]
"""Told every reply as it is complete."""


@dataclass(frozen=True)
class Traffic:
    """How requests are sent.

    `request_rate` a second: inf sends all at once, else the waits between are drawn; with `burstiness` 1
    they are exponential (a Poisson process), below 1 more bursty, above more even (gamma). At most
    `max_concurrency` requests are under way (None: any number). `warm_ups` requests go first, untimed.
    """

    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    warm_ups: int = 1

    def check(self) -> None:
        """Raises ConfigError for values out of range."""
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

    def wait_s(self, rng: np.random.RandomState) -> float:
        """The next wait between two requests."""
        if math.isinf(self.request_rate):
            return 0.0
        if self.burstiness == 1:
            return float(rng.exponential(1 / self.request_rate))
        return float(rng.gamma(self.burstiness, 1 / (self.request_rate * self.burstiness)))


COUNTERS = {
    "steps": "vllm:diffusion_num_denoising_steps",
    "positions": "unmask:computed_positions",
    "wasted": "unmask:wasted_positions",
}
"""Of the server's metrics page: forwards of all sequences, positions computed, and those behind an end."""


@dataclass(frozen=True)
class Served:
    """What came back, in the order of sending; `duration_s` from the first sending to the last line.

    `counted`: by how much each of `COUNTERS` that the server has grew meanwhile, by whatever request.
    """

    replies: tuple[EndpointReply, ...]
    duration_s: float
    accept_length: float | None = None
    counted: Mapping[str, float] = field(default_factory=dict)


async def warm_up(
    endpoint: Endpoint, ask: EndpointQuery, number: int, client: httpx2.AsyncClient
) -> None:
    """Send a small version of a request `number` times. Raises RemoteError when none goes well."""
    small = EndpointQuery(ask.prompt, min(ask.num_tokens, WARM_UP_TOKENS))
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
) -> Served:
    """Send everything at the traffic's pace and wait for all replies."""
    limit = asyncio.Semaphore(traffic.max_concurrency or len(items))

    async def send(ask: EndpointQuery) -> EndpointReply:
        async with limit:
            reply = await endpoint.send(client, ask)
        watch(reply)
        return reply

    began = time.perf_counter()
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(send(item.ask)))
        # all at once: as soon as the loop comes to it, without a pause between
        if wait := traffic.wait_s(rng):
            await asyncio.sleep(wait)
    replies = await asyncio.gather(*tasks)
    return Served(tuple(replies), time.perf_counter() - began)


async def server_model(client: httpx2.AsyncClient, base_url: str) -> str:
    """The first model that a server lists. Raises RemoteError."""
    found = await get_json(client, f"{base_url}/v1/models")
    try:
        return str(found["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise RemoteError(f"{base_url}/v1/models lists no model") from None


@dataclass(frozen=True)
class Server:
    """Where the server is; the model's name as it is served (None: the first it lists)."""

    base_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    api_key: str | None = None
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """What every request bears. Raises ConfigError for a key that is given twice."""
        if self.api_key is None:
            return dict(self.more_headers)
        if any(name.lower() == "authorization" for name in self.more_headers):
            raise ConfigError(
                "the key and the header Authorization are one thing; give one of them"
            )
        return {"Authorization": f"Bearer {self.api_key}", **self.more_headers}

    @property
    def url(self) -> str:
        """The address without a path. Raises ConfigError."""
        url = self.base_url or f"http://{self.host.removeprefix('http://')}:{self.port}"
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={url!r} must begin with http:// or https://")
        return url.rstrip("/").removesuffix("/v1")

    def model_id(self) -> str:
        """The model's name, asked for if need be. Raises RemoteError."""
        if self.model is not None:
            return self.model

        async def ask() -> str:
            async with make_client(self.headers) as client:
                return await server_model(client, self.url)

        return asyncio.run(ask())


async def accept_length(client: httpx2.AsyncClient, base_url: str) -> float | None:
    """SGLang's `avg_spec_accept_length` (here: tokens a forward), where the server tells it."""
    try:
        found: Any = await get_json(client, f"{base_url}/get_server_info")
        value = found["internal_states"][0].get("avg_spec_accept_length")
    except (RemoteError, KeyError, IndexError, TypeError, AttributeError):
        return None  # not every server has it, and nothing but one row depends on it
    return float(value) if value else None


async def counters(client: httpx2.AsyncClient, base_url: str) -> dict[str, float]:
    """Those of `COUNTERS` that the server's `/metrics` has now, labels summed up."""
    import httpx2

    found: dict[str, float] = {}
    try:
        page = await client.get(f"{base_url}/metrics")
    except httpx2.HTTPError:
        return found  # as with the accept length
    for line in page.text.splitlines() if page.status_code == 200 else ():
        name = line.partition("{")[0].partition(" ")[0].removesuffix("_total")
        for key, wanted in COUNTERS.items():
            if name == wanted:
                found[key] = found.get(key, 0.0) + float(line.rpartition(" ")[2])
    return found


def measure(
    endpoint: Endpoint,
    base_url: str,
    items: Sequence[WorkItem],
    traffic: Traffic,
    rng: np.random.RandomState,
    headers: Mapping[str, str] | None = None,
    watch: Watch = lambda reply: None,
) -> Served:
    """Warm up and run the benchmark in an event loop of its own. Raises RemoteError and ConfigError."""
    traffic.check()

    async def go() -> Served:
        async with make_client(headers) as client:
            await warm_up(endpoint, items[0].ask, traffic.warm_ups, client)
            before = await counters(client, base_url)
            served = await run(endpoint, items, traffic, rng, client, watch)
            after = await counters(client, base_url)
            return replace(
                served,
                accept_length=await accept_length(client, base_url),
                counted={key: after[key] - value for key, value in before.items() if key in after},
            )

    return asyncio.run(go())
