"""Report of a serving benchmark: SGLang's table with rows for diffusion decoding, and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unmask.bench.latency import Blocks, Spread, Standard

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 50, 40, 10
METRICS = ("ttft", "tpot", "itl", "e2el")
TITLES = {
    "e2el": ("End-to-End Latency", "E2E Latency"),
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-Token Latency", "ITL"),
}
PERCENTILES = {"e2el": (), "ttft": (99.0,), "tpot": (99.0,), "itl": (95.0, 99.0)}
"""Percentiles of SGLang's table beside the median, by metric."""

Value = float | int | str | None


@dataclass(frozen=True)
class ServingReport:
    """A run with its settings; `extra_percentiles` come in addition to `PERCENTILES`."""

    backend: str
    request_rate: float
    max_concurrency: int | None
    standard: Standard
    blocks: Blocks
    num_failed: int
    first_error: str | None
    extra_percentiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    setting: Mapping[str, object] = field(default_factory=dict)

    def percentiles(self, metric: str) -> list[float]:
        """Return the percentiles to show of a metric, the median aside."""
        return sorted({*PERCENTILES[metric], *self.extra_percentiles.get(metric, ())})

    def table(self) -> str:
        """Return the rows of SGLang's `bench_serving`, then those of blocks and forwards."""
        lines = [_head(" Serving Benchmark Result ", "=")]
        lines += [_row(label, value) for label, value in self._totals()]
        for metric in ("e2el", "ttft", "tpot", "itl"):
            title, short = TITLES[metric]
            spread: Spread = getattr(self.standard, metric)
            lines.append(_head(title, "-"))
            lines.append(_row(f"Mean {short} (ms):", spread.mean))
            lines.append(_row(f"Median {short} (ms):", spread.percentile(50)))
            for percent in self.percentiles(metric):
                if percent == 50:
                    continue  # the median is there already
                lines.append(_row(f"P{percent:g} {short} (ms):", spread.percentile(percent)))
            if metric == "itl":
                lines.append(_row("Max ITL (ms):", spread.maximum))
        lines.append(_head("Diffusion Decoding", "-"))
        lines += [_row(label, value) for label, value in self._diffusion()]
        return "\n".join([*lines, "=" * WIDTH])

    def _totals(self) -> Iterator[tuple[str, Value]]:
        numbers = self.standard
        yield "Backend:", self.backend
        yield "Traffic request rate:", str(self.request_rate)
        yield "Max request concurrency:", str(self.max_concurrency or "not set")
        yield "Successful requests:", numbers.completed
        yield "Benchmark duration (s):", numbers.duration_s
        yield "Total input tokens:", numbers.num_input
        yield "Total input text tokens:", numbers.num_input
        yield "Total input vision tokens:", 0
        yield "Total generated tokens:", numbers.num_output
        yield "Total generated tokens (retokenized):", numbers.num_retokenized
        yield "Request throughput (req/s):", numbers.request_rate
        yield "Input token throughput (tok/s):", numbers.input_rate
        yield "Output token throughput (tok/s):", numbers.output_rate
        yield "Peak output token throughput (tok/s):", numbers.peak_rate
        yield "Peak concurrent requests:", numbers.peak_concurrency
        yield "Total token throughput (tok/s):", numbers.total_rate
        yield "Concurrency:", numbers.concurrency
        if numbers.accept_length:
            yield "Accept length:", numbers.accept_length

    def _diffusion(self) -> Iterator[tuple[str, Value]]:
        numbers = self.blocks
        yield "Block length (tokens):", numbers.block_length
        yield "Median time to first block (ms):", numbers.first_block.percentile(50)
        yield "P99 time to first block (ms):", numbers.first_block.percentile(99)
        yield "Median block latency (ms):", numbers.block.percentile(50)
        yield "P99 block latency (ms):", numbers.block.percentile(99)
        yield "Tokens per forward:", numbers.tokens_per_forward
        yield "Forwards per request (NFE):", numbers.forwards
        waste = numbers.eos_waste
        yield "EOS waste (% of positions computed):", None if waste is None else 100 * waste
        if numbers.good_rate is not None:
            yield "Request goodput (req/s):", numbers.good_rate
        yield "Failed requests:", self.num_failed

    def as_json(self) -> dict[str, object]:
        """Return all numbers under the names of SGLang's client, times in ms; None if not measured."""
        numbers, blocks = self.standard, self.blocks
        result: dict[str, object] = {
            **self.setting,
            "backend": self.backend,
            # JSON has no infinity
            "request_rate": str(self.request_rate),
            "max_concurrency": self.max_concurrency,
            "duration": numbers.duration_s,
            "completed": numbers.completed,
            "failed": self.num_failed,
            "first_error": self.first_error,
            "total_input_tokens": numbers.num_input,
            "total_output_tokens": numbers.num_output,
            "total_output_tokens_retokenized": numbers.num_retokenized,
            "request_throughput": numbers.request_rate,
            "input_throughput": numbers.input_rate,
            "output_throughput": numbers.output_rate,
            "total_throughput": numbers.total_rate,
            "max_output_tokens_per_s": numbers.peak_rate,
            "max_concurrent_requests": numbers.peak_concurrency,
            "concurrency": numbers.concurrency,
            "accept_length": numbers.accept_length,
        }
        for metric in METRICS:
            spread: Spread = getattr(numbers, metric)
            name = "e2e_latency" if metric == "e2el" else metric
            result[f"mean_{name}_ms"] = spread.mean
            result[f"median_{name}_ms"] = spread.percentile(50)
            result[f"std_{name}_ms"] = spread.std
            for percent in sorted({99.0, *self.percentiles(metric)}):
                result[f"p{percent:g}_{name}_ms"] = spread.percentile(percent)
        result["max_itl_ms"] = numbers.itl.maximum
        for name, spread in (("first_block", blocks.first_block), ("block", blocks.block)):
            result[f"mean_{name}_ms"] = spread.mean
            result[f"p50_{name}_ms"] = spread.percentile(50)
            result[f"p99_{name}_ms"] = spread.percentile(99)
        return result | {
            "block_length": blocks.block_length,
            "diffusion_tokens_per_forward": blocks.tokens_per_forward,
            "diffusion_forwards_per_request": blocks.forwards,
            "diffusion_eos_waste": blocks.eos_waste,
            "goals": dict(blocks.goals),
            "request_goodput": blocks.good_rate,
        }


def _head(title: str, fill: str) -> str:
    return f"{title:{fill}^{WIDTH}}"


def _row(label: str, value: Value) -> str:
    cell = "n/a" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<{LABEL_WIDTH}} {cell:<{VALUE_WIDTH}}"
