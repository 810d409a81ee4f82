"""From replies to the numbers of a serving benchmark.

The numbers of `Standard` are SGLang's, formula for formula (`calculate_metrics` of its
`bench_serving.py`, 0.5.6), so that they can be laid beside its own. Two of them mislead where tokens
come in blocks: the time per output token takes the whole first block for one free token, and the
inter-token latency of the OpenAI endpoints is one value a piece. `Blocks` holds what a diffusion model is
better judged by.
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
"""Tokens in a text, without special ones."""

GOALS = ("ttft", "tpot", "e2el")
BLOCK_LENGTH = 32


@dataclass(frozen=True)
class Spread:
    """Values of one kind; every statistic is None when there are none."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Arithmetic mean."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the values themselves (divided by their number)."""
        return float(np.std(self.values)) if self.values else None

    @property
    def most(self) -> float | None:
        """The largest."""
        return max(self.values) if self.values else None

    def percentile(self, percent: float) -> float | None:
        """Linear between the neighbors; 50: the median."""
        return float(np.percentile(self.values, percent)) if self.values else None


@dataclass(frozen=True)
class Standard:
    """SGLang's rows. Times in ms, rates a second, over the requests that went well.

    Of answers that were not streamed the first text is the whole, so TTFT is the latency and TPOT is 0.

    `ttft`: sending to the first text, waiting in the queue included. `tpot`: (end to end - TTFT) over
    (tokens - 1), of answers of 2 tokens or more. `itl`: the gap before a piece; for `sglang`, and where
    the server tells an accept length, shared among the piece's tokens and repeated for each. `peak_rate`:
    most pieces (tokens, for `sglang`) in a second, `peak_concurrency` most requests that touch one.
    `concurrency`: sum of all end-to-end times over the duration.
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
    peak_rate: float
    peak_concurrency: int
    accept_length: float | None = None

    @property
    def request_rate(self) -> float:
        """Requests a second."""
        return self.completed / self.duration_s

    @property
    def input_rate(self) -> float:
        """Prompt tokens a second."""
        return self.num_input / self.duration_s

    @property
    def output_rate(self) -> float:
        """Generated tokens a second."""
        return self.num_output / self.duration_s

    @property
    def total_rate(self) -> float:
        """Tokens of prompts and answers a second."""
        return (self.num_input + self.num_output) / self.duration_s

    @property
    def concurrency(self) -> float:
        """Requests in flight, on average."""
        return sum(self.e2el.values) / 1000 / self.duration_s


def standard(
    replies: Sequence[EndpointReply],
    prompt_lengths: Sequence[int],
    duration_s: float,
    count: Count,
    accept_length: float | None = None,
) -> Standard:
    """SGLang's numbers. `accept_length` is the server's tokens a forward, where it tells them so."""
    pairs = zip(replies, prompt_lengths, strict=True)
    good = [(reply, length) for reply, length in pairs if reply.error is None]
    done = [reply for reply, _ in good]
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
        ttft=Spread(tuple(1000 * first_at(reply) for reply in done)),
        tpot=Spread(tuple(1000 * tpot(reply) for reply in done if reply.num_tokens > 1)),
        itl=Spread(tuple(1000 * gap for each in gaps for gap in each)),
        peak_rate=rate,
        peak_concurrency=requests,
        accept_length=accept_length,
    )


def first_at(reply: EndpointReply) -> float:
    """Seconds to the first text; 0 when none came, as in SGLang's client."""
    return reply.arrivals[0].at_s if reply.arrivals else 0.0


def tpot(reply: EndpointReply) -> float:
    """Seconds per output token after the first piece."""
    return (reply.latency_s - first_at(reply)) / (reply.num_tokens - 1)


def gaps_of(reply: EndpointReply, count: Count | None) -> list[float]:
    """Inter-token latencies in seconds: a value a piece, or a token where the tokens are known.

    They are where the server told them, or `count` is given. A piece without a new token is passed over.
    """
    found: list[float] = []
    if not reply.arrivals:
        return found
    first, *rest = reply.arrivals
    at, told = first.at_s, first.num_tokens
    for item in rest:
        if item.num_tokens is not None:
            new = item.num_tokens - (told or 0)
            told = item.num_tokens
        else:
            new = 1 if count is None else count(item.text)
        if new > 0:
            found.extend([(item.at_s - at) / new] * new)
            at = item.at_s
    return found


def peaks(done: Sequence[EndpointReply], gaps: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Most tokens and most requests in one of the seconds since the first request was sent."""
    if not done:
        return 0.0, 0
    start = min(reply.sent_at_s for reply in done)
    end = max(reply.sent_at_s + reply.latency_s for reply in done)
    seconds = math.ceil(end - start) + 1
    tokens, requests = np.zeros(seconds), np.zeros(seconds, dtype=int)
    for reply, own in zip(done, gaps, strict=True):
        times = np.cumsum([reply.sent_at_s + first_at(reply), *own]) - start
        np.add.at(tokens, times[times < seconds].astype(int), 1)
        begun = int(reply.sent_at_s - start)
        requests[begun : int(reply.sent_at_s + reply.latency_s - start) + 1] += 1
    return float(tokens.max()), int(requests.max())


@dataclass(frozen=True)
class Blocks:
    """What tells a diffusion model's server. Times in ms.

    A block has come when its last token has: `block_length` tokens, or the answer's end. `first_block`:
    sending to the first; `block`: from each to the next. `forwards` a request (on average) and
    `tokens_per_forward` as the replies' usage says, else by the server's counters; `eos_waste`: positions
    that were computed behind an end of text, of all that were computed, by its counters. Each is None when
    the server does not say. `good_rate`: requests a second that met every goal of `goals`.
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
    counted: Mapping[str, float] | None = None,
) -> Blocks:
    """The numbers of blocks, forwards, waste and goals; `counted` as in `serve.Served`."""
    goals, counted = goals or {}, counted or {}
    done = [reply for reply in replies if reply.error is None]
    arrivals = [block_times(reply, count, block_length) for reply in done if reply.in_pieces]
    forwards = [reply.usage.get("num_forwards") for reply in done]
    steps = counted.get("steps")
    if done and None not in forwards:
        steps = sum(int(each or 0) for each in forwards)
    tokens = sum(reply.num_tokens for reply in done)
    good = len([reply for reply in done if meets(reply, goals)])
    positions, wasted = counted.get("positions"), counted.get("wasted")
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
    """Seconds after sending at which each block was complete."""
    found: list[float] = []
    so_far = 0
    for item in reply.arrivals:
        so_far = so_far + count(item.text) if item.num_tokens is None else item.num_tokens
        found.extend([item.at_s] * (so_far // block_length - len(found)))
    if so_far > len(found) * block_length:
        found.append(reply.arrivals[-1].at_s)
    return found


def meets(reply: EndpointReply, goals: Mapping[str, float]) -> bool:
    """Whether a request met every goal (ms); one of a single token has no time per token to miss."""
    own = {
        "ttft": first_at(reply),
        "tpot": tpot(reply) if reply.num_tokens > 1 else 0.0,
        "e2el": reply.latency_s,
    }
    return all(1000 * own[name] <= most for name, most in goals.items())


def parse_goals(words: Sequence[str]) -> dict[str, float]:
    """`ttft:500 e2el:2000` (also one word, or commas between) as goals in ms. Raises ConfigError."""
    found: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        name, _, value = word.partition(":")
        if name not in GOALS:
            raise unknown_name("goal", name, GOALS)
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] < math.inf:
            raise ConfigError(
                f"goodput {word!r} must be a name and milliseconds, such as {name}:500"
            )
    return found
