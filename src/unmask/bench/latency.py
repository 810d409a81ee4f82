"""Metrics of a serving benchmark, computed from the replies.

The metrics of `Standard` are SGLang's, formula for formula (`calculate_metrics` of its
`bench_serving.py`, 0.5.6), and can be compared with its own. Two of them mislead where tokens arrive in
blocks: the time per output token counts the whole first block as one free token, and the inter-token
latency of the OpenAI endpoints is one value per chunk. `Blocks` has metrics that suit a diffusion model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from unmask.bench.endpoint import EndpointReply
from unmask.errors import ConfigError, unknown_name

Count = Callable[[str], int]
"""Function that returns the number of tokens in a text, special tokens excluded."""

GOALS = ("ttft", "tpot", "e2el")
BLOCK_LENGTH = 32


@dataclass(frozen=True)
class Spread:
    """Sample of a metric; every statistic is None when it is empty."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Arithmetic mean."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (sum of squares divided by its size)."""
        return float(np.std(self.values)) if self.values else None

    @property
    def maximum(self) -> float | None:
        """Largest value."""
        return max(self.values) if self.values else None

    def percentile(self, percent: float) -> float | None:
        """Return a percentile (50: the median), interpolated linearly."""
        return float(np.percentile(self.values, percent)) if self.values else None


@dataclass(frozen=True)
class Standard:
    """SGLang's metrics over the successful requests; times in ms, rates per second.

    `ttft`: from sending to the first text, queueing included. `tpot`: (end to end - TTFT) / (tokens - 1),
    of replies of at least 2 tokens. `itl`: time between chunks; for `sglang`, and where the server reports
    an accept length, divided among the tokens of the chunk and repeated for each. `peak_rate`: maximum
    number of chunks (for `sglang` of tokens) in one second; `peak_concurrency`: maximum number of requests
    that overlap one second. `concurrency`: sum of all end-to-end times / duration.

    The first text of a reply in one piece is the whole reply, so TTFT is the latency and TPOT is 0. Unlike
    in SGLang's client, a reply without text has no TTFT, TPOT and ITL, and `peak_rate` is None without any
    text.
    """

    completed: int
    duration_s: float
    num_input: int
    num_output: int
    num_retokenized: int
    e2el: Spread
    ttft: Spread
    tpot: Spread
    itl: Spread
    peak_rate: float | None
    peak_concurrency: int
    accept_length: float | None = None

    @property
    def request_rate(self) -> float:
        """Requests per second."""
        return self.completed / self.duration_s

    @property
    def input_rate(self) -> float:
        """Prompt tokens per second."""
        return self.num_input / self.duration_s

    @property
    def output_rate(self) -> float:
        """Generated tokens per second."""
        return self.num_output / self.duration_s

    @property
    def total_rate(self) -> float:
        """Prompt and generated tokens per second."""
        return (self.num_input + self.num_output) / self.duration_s

    @property
    def concurrency(self) -> float:
        """Mean number of requests in flight."""
        return sum(self.e2el.values) / 1000 / self.duration_s


def standard(
    replies: Sequence[EndpointReply],
    prompt_lengths: Sequence[int],
    duration_s: float,
    count: Count,
    accept_length: float | None = None,
) -> Standard:
    """Compute SGLang's metrics; `accept_length`: tokens per forward as the server reports them."""
    pairs = zip(replies, prompt_lengths, strict=True)
    good = [(reply, length) for reply, length in pairs if reply.error is None]
    done = [reply for reply, _ in good]
    told = [reply for reply in done if reply.arrivals]
    shared = bool(accept_length)
    gaps = [gaps_of(reply, count if shared else None) for reply in done]
    raw = [gaps_of(reply, None) for reply in done]
    rate, requests = peaks(done, raw)
    return Standard(
        completed=len(done),
        duration_s=duration_s,
        num_input=sum(length for _, length in good),
        num_output=sum(reply.num_tokens for reply in done),
        num_retokenized=sum(count(reply.text) for reply in done),
        e2el=Spread(tuple(1000 * reply.latency_s for reply in done)),
        ttft=Spread(tuple(1000 * first_at(reply) for reply in told)),
        tpot=Spread(tuple(1000 * tpot(reply) for reply in told if reply.num_tokens > 1)),
        itl=Spread(tuple(1000 * gap for each in gaps for gap in each)),
        peak_rate=rate,
        peak_concurrency=requests,
        accept_length=accept_length,
    )


def first_at(reply: EndpointReply) -> float:
    """Return the seconds to the first text; infinity without text."""
    return reply.arrivals[0].at_s if reply.arrivals else math.inf


def tpot(reply: EndpointReply) -> float:
    """Return the seconds per output token after the first chunk."""
    return (reply.latency_s - first_at(reply)) / (reply.num_tokens - 1)


def gaps_of(reply: EndpointReply, count: Count | None) -> list[float]:
    """Return inter-token latencies in seconds, one per token where the tokens are known, else per chunk.

    The tokens are known where the server reports them or `count` is not None. Chunks without a new token
    are skipped.
    """
    gaps: list[float] = []
    if not reply.arrivals:
        return gaps
    first, *rest = reply.arrivals
    at, num_tokens = first.at_s, first.num_tokens
    for item in rest:
        if item.num_tokens is not None:
            new = item.num_tokens - (num_tokens or 0)
            num_tokens = item.num_tokens
        else:
            new = 1 if count is None else count(item.text)
        if new > 0:
            gaps.extend([(item.at_s - at) / new] * new)
            at = item.at_s
    return gaps


def peaks(
    done: Sequence[EndpointReply], gaps: Sequence[Sequence[float]]
) -> tuple[float | None, int]:
    """Return the maximum number of tokens and of requests in one second since the first request.

    That of tokens is None if no reply has text.
    """
    if not done:
        return None, 0
    start = min(reply.sent_at_s for reply in done)
    end = max(reply.sent_at_s + reply.latency_s for reply in done)
    seconds = math.ceil(end - start) + 1
    tokens, requests = np.zeros(seconds), np.zeros(seconds, dtype=int)
    for reply, own in zip(done, gaps, strict=True):
        if reply.arrivals:
            times = np.cumsum([reply.sent_at_s + first_at(reply), *own]) - start
            np.add.at(tokens, times[times < seconds].astype(int), 1)
        begun = int(reply.sent_at_s - start)
        requests[begun : int(reply.sent_at_s + reply.latency_s - start) + 1] += 1
    peak = float(tokens.max()) if any(reply.arrivals for reply in done) else None
    return peak, int(requests.max())


@dataclass(frozen=True)
class Blocks:
    """Metrics for servers of diffusion models; times in ms.

    A block is complete at the arrival of its last token: every `block_length` tokens, and at the end of the
    reply. `first_block`: from sending to the first block; `block`: between blocks. `forwards`: mean number
    of forwards per request, and `tokens_per_forward`, from the usage of the replies, else from the counters
    of the server; `eos_waste`: share of computed positions that lie after an end of text, from the
    counters. Each is None when the server does not report it. `good_rate`: requests per second within all
    `goals`.
    """

    block_length: int
    first_block: Spread
    block: Spread
    forwards: float | None = None
    tokens_per_forward: float | None = None
    eos_waste: float | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    good_rate: float | None = None


def blocks(
    replies: Sequence[EndpointReply],
    duration_s: float,
    count: Count,
    block_length: int = BLOCK_LENGTH,
    goals: Mapping[str, float] | None = None,
    counters: Mapping[str, float] | None = None,
) -> Blocks:
    """Compute the metrics of blocks, forwards, waste and goals; `counters` as in `serve.LoadResult`."""
    goals, counters = goals or {}, counters or {}
    done = [reply for reply in replies if reply.error is None]
    arrivals = [block_times(reply, count, block_length) for reply in done if reply.is_streamed]
    forwards = [reply.usage.get("num_forwards") for reply in done]
    steps = counters.get("steps")
    if done and None not in forwards:
        steps = sum(each for each in forwards if isinstance(each, int))
    tokens = sum(reply.num_tokens for reply in done)
    good = len([reply for reply in done if meets(reply, goals)])
    positions, wasted = counters.get("positions"), counters.get("wasted")
    return Blocks(
        block_length=block_length,
        first_block=Spread(tuple(1000 * times[0] for times in arrivals if times)),
        block=Spread(tuple(1000 * (b - a) for times in arrivals for a, b in pairwise(times))),
        forwards=steps / len(done) if steps and done else None,
        tokens_per_forward=tokens / steps if steps else None,
        eos_waste=wasted / positions if positions and wasted is not None else None,
        goals=dict(goals),
        good_rate=good / duration_s if goals else None,
    )


def block_times(reply: EndpointReply, count: Count, block_length: int) -> list[float]:
    """Return the time at which each block was complete, in seconds after sending."""
    times: list[float] = []
    num_tokens = 0
    for item in reply.arrivals:
        num_tokens = num_tokens + count(item.text) if item.num_tokens is None else item.num_tokens
        times.extend([item.at_s] * (num_tokens // block_length - len(times)))
    if num_tokens > len(times) * block_length:
        times.append(reply.arrivals[-1].at_s)
    return times


def meets(reply: EndpointReply, goals: Mapping[str, float]) -> bool:
    """Return True if a request is within every goal (ms); the TPOT of a single token is 0.

    A reply without text never meets a goal of its first token.
    """
    times = {
        "ttft": first_at(reply),
        "tpot": tpot(reply) if reply.num_tokens > 1 and reply.arrivals else 0.0,
        "e2el": reply.latency_s,
    }
    return all(1000 * times[name] <= limit for name, limit in goals.items())


def parse_goals(words: Sequence[str]) -> dict[str, float]:
    """Parse goals in ms such as `ttft:500 e2el:2000`, also comma-separated. Raises ConfigError."""
    goals: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        name, _, value = word.partition(":")
        if name not in GOALS:
            raise unknown_name("goal", name, GOALS)
        try:
            goals[name] = float(value)
        except ValueError:
            goals[name] = math.nan
        if not 0 <= goals[name] < math.inf:
            raise ConfigError(
                f"goodput {word!r} must be a name and milliseconds, such as {name}:500"
            )
    return goals
