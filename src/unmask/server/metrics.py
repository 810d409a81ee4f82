"""What `/metrics` tells Prometheus: vLLM's names where vLLM has the number, `unmask:` names for the rest.

Labels are bounded: the model's name, a decoder's or cache's file name, how a request ended, an HTTP route
and status. Nothing that a client writes becomes a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from unmask.server.generation import BLOCK_LENGTH, Generation, Pace

if TYPE_CHECKING:
    from unmask.engine.engine import Engine

FRACTIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
PER_FORWARD = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The counters of one server; every server has its own registry."""

    def __init__(self, engine: Engine, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # there is no switch of a registry
        self.registry = CollectorRegistry()
        self.model = model
        self.registry.register(EngineNumbers(engine, model))
        self.ended = Counter(
            "vllm:request_success",
            "Answers by how they ended: stop, length, abort, timeout, error.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "vllm:prompt_tokens", "Tokens of the prompts.", ["model_name"], registry=self.registry
        )
        self.generation_tokens = Counter(
            "vllm:generation_tokens",
            "Tokens of the answers, ends excluded.",
            ["model_name"],
            registry=self.registry,
        )
        self.ttft = self._seconds(
            "vllm:time_to_first_token_seconds", "Until the first text that stays, waiting included."
        )
        self.e2e = self._seconds("vllm:e2e_request_latency_seconds", "Of whole requests.")
        self.queued = self._seconds("vllm:request_queue_time_seconds", "In the queue.")
        self.paces = PaceNumbers(self.registry, model)
        self.prompt_sizes = self._tokens("vllm:request_prompt_tokens", "Tokens of a prompt.")
        self.generation_sizes = self._tokens(
            "vllm:request_generation_tokens", "Tokens of an answer that came to its own end."
        )
        self.forwards = Histogram(
            "unmask:request_forwards",
            "Forwards of an answer.",
            ["model_name", "decoder", "cache"],
            buckets=TOKENS,
            registry=self.registry,
        )
        self.per_forward = Histogram(
            "unmask:request_tokens_per_forward",
            "Tokens of an answer a forward.",
            ["model_name", "decoder", "cache"],
            buckets=PER_FORWARD,
            registry=self.registry,
        )
        self.http = Counter(
            "unmask:http_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.num_tokens, self.num_forwards = 0, 0

    def _seconds(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ["model_name"], buckets=SECONDS, registry=self.registry)

    def _tokens(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ["model_name"], buckets=TOKENS, registry=self.registry)

    @property
    def tokens_per_forward(self) -> float:
        """Mean over all answers since the start, weighted by forwards; 0 before the first."""
        return self.num_tokens / self.num_forwards if self.num_forwards else 0.0

    def count(self, call: Generation, reason: str | None = None) -> None:
        """Count a call that is over; `reason` when it did not come to its own end."""
        name = self.model
        self.e2e.labels(name).observe(call.seconds)
        if call.queue_s is not None:
            self.queued.labels(name).observe(call.queue_s)
        if call.first_text_s is not None:
            self.ttft.labels(name).observe(call.first_text_s)
        prompts = {answer.plan.prompt: answer.plan.num_prompt for answer in call.answers}
        self.prompt_tokens.labels(name).inc(sum(prompts.values()))
        for size in prompts.values():
            self.prompt_sizes.labels(name).observe(size)
        for answer, pace in zip(call.answers, call.paces, strict=True):
            self.paces.count(pace)
            self.ended.labels(name, answer.reason or reason or "error").inc()
            self.generation_tokens.labels(name).inc(answer.num_tokens)
            if answer.reason is not None:
                self.generation_sizes.labels(name).observe(answer.num_tokens)
            self.num_tokens += answer.num_tokens
            self.num_forwards += answer.num_forwards
            if answer.reason is not None and answer.num_forwards:
                request = answer.plan.request
                labels = (name, request.decoder.name, request.cache.name)
                self.forwards.labels(*labels).observe(answer.num_forwards)
                self.per_forward.labels(*labels).observe(answer.num_tokens / answer.num_forwards)

    def count_http(self, route: str, status: int) -> None:
        """Count an answer; `route` is a template of the app's own."""
        self.http.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self.registry)


class PaceNumbers:
    """How fast the tokens of answers come, those of answers that were given up among them."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self.model = model
        self.first_block = Histogram(
            "unmask:time_to_first_block_seconds",
            f"Until {BLOCK_LENGTH} tokens of an answer stay, or all of it; waiting included.",
            ["model_name"],
            buckets=SECONDS,
            registry=registry,
        )
        self.block = Histogram(
            "unmask:block_latency_seconds",
            f"From a block of {BLOCK_LENGTH} tokens that stay to the next; the last is shorter.",
            ["model_name"],
            buckets=SECONDS,
            registry=registry,
        )
        self.per_token = Histogram(
            "vllm:request_time_per_output_token_seconds",
            "From the first tokens of an answer that stay to the last, over (tokens - 1).",
            ["model_name"],
            buckets=FRACTIONS,
            registry=registry,
        )

    def count(self, pace: Pace) -> None:
        """Count an answer that is over."""
        if pace.blocks_s:
            self.first_block.labels(self.model).observe(pace.blocks_s[0])
        for between_s in pace.between_s:
            self.block.labels(self.model).observe(between_s)
        if pace.per_token_s is not None:
            self.per_token.labels(self.model).observe(pace.per_token_s)


class EngineNumbers(Collector):
    """The engine's own counters, read when they are asked for."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model

    def describe(self) -> Iterator[Metric]:
        """No names beforehand: the engine need not run yet."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """A snapshot."""
        stats = self.engine.stats
        gauges: dict[str, tuple[str, float]] = {
            "vllm:num_requests_running": ("Requests in the batch.", stats.running),
            "vllm:num_requests_waiting": ("Requests in the queue.", stats.queued),
            "vllm:kv_cache_usage_perc": (
                "Share of the pages that requests hold, 0 to 1; 0 without pages.",
                1 - stats.pages_free / stats.pages_total if stats.pages_total else 0.0,
            ),
            "unmask:pages_total": (
                "Pages of keys and values; 0: the model has none.",
                stats.pages_total,
            ),
            "unmask:pages_free": ("Pages that nobody holds.", stats.pages_free),
            "unmask:dense_cache_bytes": ("What caches without pages take.", stats.dense_bytes),
            "unmask:rows_free": ("Rows of the batch that are free.", stats.rows_free),
            "unmask:rows_total": ("Rows of the batch.", stats.rows_total),
        }
        counters: dict[str, tuple[str, float]] = {
            "vllm:diffusion_num_denoising_steps": (
                "Denoising steps: forwards, counted for every sequence in them.",
                stats.num_steps,
            ),
            "vllm:diffusion_num_canvas_positions": (
                "Positions of answers that forwards computed; those of prompts are not counted.",
                stats.num_answer,
            ),
            "vllm:diffusion_num_committed_tokens": (
                "Tokens that forwards committed, ends of text included.",
                stats.num_committed,
            ),
            "vllm:num_preemptions": (
                "How often a request lost its pages and came back.",
                stats.num_preempted,
            ),
            "vllm:prefix_cache_queries": (
                "Decided positions of admitted requests that were looked up in the prefix cache.",
                stats.prefix_asked,
            ),
            "vllm:prefix_cache_hits": ("Those that were found there.", stats.prefix_found),
            "unmask:forwards": ("Forwards of the network.", stats.num_forwards),
            "unmask:forward_seconds": ("Time that forwards took.", stats.forward_s),
            "unmask:computed_positions": (
                "Positions that forwards computed, those of prompts among them.",
                stats.num_queries,
            ),
            "unmask:wasted_positions": (
                "Positions that were computed right of an end token.",
                stats.num_wasted,
            ),
        }
        for name, (about, value) in gauges.items():
            gauge = GaugeMetricFamily(name, about, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        for name, (about, value) in counters.items():
            counter = CounterMetricFamily(name, about, labels=["model_name"])
            counter.add_metric([self.model], value)
            yield counter
