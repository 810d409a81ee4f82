"""Prometheus metrics of `/metrics`: vLLM's names where vLLM has the metric, `unmask:` names for the rest.

Labels are bounded: the model's name, the file name of a decoder or cache, a finish reason, an HTTP route
and status. No text from a client becomes a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from unmask.engine.metrics import SIZE_BUCKETS
from unmask.server.generation import BLOCK_LENGTH, Generation, TokenTimings

if TYPE_CHECKING:
    from unmask.engine.engine import Engine
    from unmask.engine.metrics import EngineStats
    from unmask.engine.text_pool import TextPool
    from unmask.server.planning import Planning

TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
PER_FORWARD_BUCKETS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engine: Engine, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a registry has no such switch
        self.registry = CollectorRegistry()
        self.model = model
        self.registry.register(EngineCollector(engine, model))
        self.finished = self._counter(
            "vllm:request_success",
            "Answers by finish reason: stop, length, abort, timeout, error.",
            "finished_reason",
        )
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens.")
        self.generation_tokens = self._counter(
            "vllm:generation_tokens", "Generated tokens, without end tokens."
        )
        self.cached_tokens = self._counter(
            "vllm:prompt_tokens_cached", "Prompt tokens found in the prefix cache."
        )
        self.first_text = self._histogram(
            "vllm:time_to_first_token_seconds",
            "Time to the first final text, queueing included.",
            REQUEST_BUCKETS_S,
        )
        self.latency = self._histogram(
            "vllm:e2e_request_latency_seconds", "Time of whole requests.", REQUEST_BUCKETS_S
        )
        self.queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Time in the queue.", REQUEST_BUCKETS_S
        )
        self.http = Counter(
            "unmask:http_requests",
            "HTTP requests by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.num_tokens, self.num_forwards = 0, 0
        self._add_sizes()
        self._add_times()

    def watch(self, planning: Planning, pool: TextPool) -> None:
        """Add the metrics of planning."""
        self.registry.register(PlanningCollector(planning, pool, self.model))

    def _add_sizes(self) -> None:
        self.prompt_sizes = self._histogram(
            "vllm:request_prompt_tokens", "Tokens per prompt.", COUNT_BUCKETS
        )
        self.generation_sizes = self._histogram(
            "vllm:request_generation_tokens", "Tokens per complete answer.", COUNT_BUCKETS
        )
        self.most_tokens = self._histogram(
            "vllm:request_max_num_generation_tokens",
            "Tokens of the longest complete answer to a prompt.",
            COUNT_BUCKETS,
        )
        self.choices = self._histogram(
            "vllm:request_params_n", "Answers per prompt (n).", (1, 2, 5, 10, 20)
        )
        self.lengths = self._histogram(
            "vllm:request_params_max_tokens",
            "Open positions of an answer (max_tokens or its default); not of decoders that choose the "
            "length.",
            COUNT_BUCKETS,
        )
        method = ("decoder", "cache")
        self.forwards = self._histogram(
            "unmask:request_forwards", "Forwards per answer.", COUNT_BUCKETS, *method
        )
        self.per_forward = self._histogram(
            "unmask:request_tokens_per_forward",
            "Tokens per forward of an answer.",
            PER_FORWARD_BUCKETS,
            *method,
        )

    def _add_times(self) -> None:
        self.first_block = self._histogram(
            "unmask:time_to_first_block_seconds",
            f"Time until the first {BLOCK_LENGTH} tokens of an answer, or all of it, are final; "
            "queueing included.",
            REQUEST_BUCKETS_S,
        )
        self.block_interval = self._histogram(
            "unmask:block_latency_seconds",
            f"Time from one block of {BLOCK_LENGTH} final tokens to the next; the last is shorter.",
            REQUEST_BUCKETS_S,
        )
        self.per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Time from the first final tokens of an answer to the last, divided by (tokens - 1).",
            TOKEN_BUCKETS_S,
        )
        self.interval = self._histogram(
            "vllm:inter_token_latency_seconds",
            "Time from final tokens of an answer to the next; tokens that become final together have none.",
            TOKEN_BUCKETS_S,
        )
        self.prefill = self._histogram(
            "vllm:request_prefill_time_seconds",
            "Time from the first forward of an answer to its first final tokens.",
            REQUEST_BUCKETS_S,
        )
        self.decode = self._histogram(
            "vllm:request_decode_time_seconds",
            "Time from the first final tokens of an answer to the last.",
            REQUEST_BUCKETS_S,
        )
        self.inference = self._histogram(
            "vllm:request_inference_time_seconds",
            "Time from the first forward of an answer to its last final tokens.",
            REQUEST_BUCKETS_S,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            name, text, ["model_name", *labels], buckets=buckets, registry=self.registry
        )

    @property
    def tokens_per_forward(self) -> float:
        """The mean over all answers since the start, weighted by forwards; 0 before the first."""
        return self.num_tokens / self.num_forwards if self.num_forwards else 0.0

    def count(self, generation: Generation, reason: str | None = None) -> None:
        """Count a generation that has ended; `reason` is the finish reason of incomplete answers."""
        name = self.model
        self.latency.labels(name).observe(generation.seconds)
        if generation.queue_s is not None:
            self.queue_time.labels(name).observe(generation.queue_s)
        if generation.first_text_s is not None:
            self.first_text.labels(name).observe(generation.first_text_s)
        prompts = {answer.plan.prompt: answer.plan.num_prompt for answer in generation.answers}
        self.prompt_tokens.labels(name).inc(sum(prompts.values()))
        for prompt, size in prompts.items():
            self.prompt_sizes.labels(name).observe(size)
            answers = [one for one in generation.answers if one.plan.prompt == prompt]
            self.cached_tokens.labels(name).inc(max(one.num_cached for one in answers))
            self.choices.labels(name).observe(len(answers))
            complete = [one.num_tokens for one in answers if one.finish_reason is not None]
            if complete:
                self.most_tokens.labels(name).observe(max(complete))
        for answer, timings in zip(generation.answers, generation.timings, strict=True):
            self._count_timings(timings)
            self.finished.labels(name, answer.finish_reason or reason or "error").inc()
            self.generation_tokens.labels(name).inc(answer.num_tokens)
            self.num_tokens += answer.num_tokens
            self.num_forwards += answer.num_forwards
            if answer.finish_reason is None:
                continue
            self.generation_sizes.labels(name).observe(answer.num_tokens)
            if not answer.plan.request.decoder.chooses_length:
                num_open = int((~answer.plan.request.canvas.fixed).sum())
                self.lengths.labels(name).observe(num_open)
            if answer.num_forwards:
                request = answer.plan.request
                labels = (name, request.decoder.name, request.cache.name)
                self.forwards.labels(*labels).observe(answer.num_forwards)
                self.per_forward.labels(*labels).observe(answer.num_tokens / answer.num_forwards)

    def _count_timings(self, timings: TokenTimings) -> None:
        if timings.blocks_s:
            self.first_block.labels(self.model).observe(timings.blocks_s[0])
        for interval_s in timings.block_intervals_s:
            self.block_interval.labels(self.model).observe(interval_s)
        for interval_s in timings.intervals_s:
            self.interval.labels(self.model).observe(interval_s)
        if timings.phases_s is not None:
            prefill_s, decode_s = timings.phases_s
            self.prefill.labels(self.model).observe(prefill_s)
            self.decode.labels(self.model).observe(decode_s)
            self.inference.labels(self.model).observe(prefill_s + decode_s)
        if timings.per_token_s is not None:
            self.per_token.labels(self.model).observe(timings.per_token_s)

    def count_http(self, route: str, status: int) -> None:
        """Count an HTTP response; `route` is a template of the app."""
        self.http.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """The engine's counters, read at every scrape."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model

    def describe(self) -> Iterator[Metric]:
        """Yield no names in advance: the engine may not have started yet."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield a snapshot of all metrics."""
        stats = self.engine.stats
        stalled = (
            "unmask:engine_stalled_seconds",
            "Seconds since the engine began its present forward; 0 while it waits.",
            self.engine.stalled_s,
        )
        for name, text, value in [*engine_gauges(stats), stalled]:
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        for name, text, value in engine_counters(stats):
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self.model], value)
            yield counter
        sizes = HistogramMetricFamily(
            "vllm:iteration_tokens_total",
            "Positions computed per forward.",
            labels=["model_name"],
        )
        bounds = [*(f"{float(bound)}" for bound in SIZE_BUCKETS), "+Inf"]
        sizes.add_metric(
            [self.model],
            list(zip(bounds, accumulate(map(float, stats.sizes)), strict=True)),
            stats.num_queries,
        )
        yield sizes


class PlanningCollector(Collector):
    """The state of planning, read at every scrape."""

    def __init__(self, planning: Planning, pool: TextPool, model: str) -> None:
        self.planning, self.pool, self.model = planning, pool, model

    def describe(self) -> Iterator[Metric]:
        """Yield no names in advance."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield a snapshot of all metrics."""
        gauges = (
            ("running", "Requests whose prompts are read now.", self.planning.num_running),
            (
                "waiting",
                "Requests that wait for their prompts to be read.",
                self.planning.num_waiting,
            ),
            (
                "stalled_seconds",
                "Seconds for which all threads that read prompts have been busy with the same requests.",
                self.planning.stalled_s,
            ),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"unmask:planning_{name}", text, labels=["model_name"])
            gauge.add_metric([self.model], value)
            yield gauge
        stopped = CounterMetricFamily(
            "unmask:planning_stopped",
            "Chat templates and tokenizings that were stopped by a limit, or crashed.",
            labels=["model_name"],
        )
        stopped.add_metric([self.model], self.pool.num_stopped)
        yield stopped


def engine_gauges(stats: EngineStats) -> list[tuple[str, str, float]]:
    """Return the name, help text and value of every gauge."""
    usage = 1 - stats.pages_free / stats.pages_total if stats.pages_total else 0.0
    return [
        ("vllm:num_requests_running", "Requests in the batch.", stats.running),
        ("vllm:num_requests_waiting", "Requests in the queue.", stats.queued),
        (
            "vllm:kv_cache_usage_perc",
            "Share of the pages in use, 0 to 1; 0 if there are no pages.",
            usage,
        ),
        (
            "unmask:pages_total",
            "Pages for keys and values; 0 for a model without them.",
            stats.pages_total,
        ),
        ("unmask:pages_free", "Free pages.", stats.pages_free),
        ("unmask:dense_cache_bytes", "Bytes of caches without pages.", stats.dense_bytes),
        ("unmask:rows_free", "Free rows of the batch.", stats.rows_free),
        ("unmask:rows_total", "Rows of the batch.", stats.rows_total),
    ]


def engine_counters(stats: EngineStats) -> list[tuple[str, str, float]]:
    """Return the name, help text and value of every counter."""
    return [
        (
            "vllm:diffusion_num_denoising_steps",
            "Denoising steps: forwards, once for every sequence in them, and as in vLLM one commit "
            "step per canvas of a complete answer.",
            stats.num_steps + stats.num_commit_steps,
        ),
        (
            "vllm:diffusion_num_canvas_positions",
            "Positions of answers computed in forwards, and as in vLLM those of the commit steps; "
            "positions of prompts are not counted.",
            stats.num_answer + stats.num_commit_positions,
        ),
        (
            "vllm:diffusion_num_committed_tokens",
            "Tokens committed in forwards, end tokens included.",
            stats.num_committed,
        ),
        (
            "vllm:num_preemptions",
            "Preemptions: requests that lost their pages and were queued again.",
            stats.num_preempted,
        ),
        (
            "vllm:prefix_cache_queries",
            "Decided positions of admitted requests that were looked up in the prefix cache.",
            stats.prefix_asked,
        ),
        ("vllm:prefix_cache_hits", "Positions found in the prefix cache.", stats.prefix_found),
        ("unmask:forwards", "Forwards of the network.", stats.num_forwards),
        (
            "unmask:decoder_steps",
            "Forwards, counted once for every sequence in them.",
            stats.num_steps,
        ),
        ("unmask:forward_seconds", "Time spent in forwards.", stats.forward_s),
        (
            "unmask:computed_positions",
            "Positions computed in forwards, positions of prompts included.",
            stats.num_queries,
        ),
        (
            "unmask:wasted_positions",
            "Positions computed to the right of an end token.",
            stats.num_wasted,
        ),
    ]


class ReplicaCollector(Collector):
    """The metrics of several replicas, with a label `replica`."""

    def __init__(self, texts: Sequence[tuple[str, str]]) -> None:
        self.texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield every metric once, with the samples of all replicas."""
        families: dict[str, Metric] = {}
        for replica, text in self.texts:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "replica": replica}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()


def merge_metrics(texts: Sequence[tuple[str, str]]) -> bytes:
    """Return one text for the metrics of several replicas, given as `(replica, text)`."""
    registry = CollectorRegistry()
    registry.register(ReplicaCollector(texts))
    return generate_latest(registry)
