"""A serving benchmark for people (SGLang's table, with a block for diffusion) and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
"""Those of SGLang's table; the median is always there."""

Value = float | int | str | None


@dataclass(frozen=True)
class ServingReport:
    """A run with what it was told; `extra_percentiles` are shown beside the usual ones."""

    backend: str
    request_rate: float
    max_concurrency: int | None
    standard: Standard
    blocks: Blocks
    num_failed: int
    first_error: str | None
    extra_percentiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)

    def percentiles(self, metric: str) -> list[float]:
        """The percentiles to show of a metric, the median aside."""
        return sorted({*PERCENTILES[metric], *self.extra_percentiles.get(metric, ())})

    def table(self) -> str:
        """The rows of document 000, then those of blocks and forwards."""
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
                lines.append(_row("Max ITL (ms):", spread.most))
        lines.append(_head("Diffusion Decoding", "-"))
        lines += [_row(label, value) for label, value in self._diffusion()]
        return "\n".join([*lines, "=" * WIDTH])

    def _totals(self) -> Iterator[tuple[str, Value]]:
        found = self.standard
        yield "Backend:", self.backend
        yield "Traffic request rate:", str(self.request_rate)
        yield "Max request concurrency:", str(self.max_concurrency or "not set")
        yield "Successful requests:", found.completed
        yield "Benchmark duration (s):", found.duration_s
        yield "Total input tokens:", found.num_input
        yield "Total input text tokens:", found.num_input
        yield "Total input vision tokens:", 0
        yield "Total generated tokens:", found.num_output
        yield "Total generated tokens (retokenized):", found.num_retokenized
        yield "Request throughput (req/s):", found.request_rate
        yield "Input token throughput (tok/s):", found.input_rate
        yield "Output token throughput (tok/s):", found.output_rate
        yield "Peak output token throughput (tok/s):", found.peak_rate
        yield "Peak concurrent requests:", found.peak_concurrency
        yield "Total token throughput (tok/s):", found.total_rate
        yield "Concurrency:", found.concurrency
        if found.accept_length:
            yield "Accept length:", found.accept_length

    def _diffusion(self) -> Iterator[tuple[str, Value]]:
        found = self.blocks
        yield "Block length (tokens):", found.block_length
        yield "Median time to first block (ms):", found.first_block.percentile(50)
        yield "P99 time to first block (ms):", found.first_block.percentile(99)
        yield "Median block latency (ms):", found.block.percentile(50)
        yield "P99 block latency (ms):", found.block.percentile(99)
        yield "Tokens per forward:", found.tokens_per_forward
        yield "Forwards per request (NFE):", found.forwards
        waste = found.eos_waste
        yield "EOS waste (% of positions computed):", None if waste is None else 100 * waste
        if found.good_rate is not None:
            yield "Request goodput (req/s):", found.good_rate
        yield "Failed requests:", self.num_failed

    def as_json(self) -> dict[str, Any]:
        """All numbers, named as SGLang's client names them (times in ms); None where not measured."""
        found, own = self.standard, self.blocks
        result: dict[str, Any] = {
            **self.setting,
            "backend": self.backend,
            # JSON has no infinity
            "request_rate": str(self.request_rate),
            "max_concurrency": self.max_concurrency,
            "duration": found.duration_s,
            "completed": found.completed,
            "failed": self.num_failed,
            "first_error": self.first_error,
            "total_input_tokens": found.num_input,
            "total_output_tokens": found.num_output,
            "total_output_tokens_retokenized": found.num_retokenized,
            "request_throughput": found.request_rate,
            "input_throughput": found.input_rate,
            "output_throughput": found.output_rate,
            "total_throughput": found.total_rate,
            "max_output_tokens_per_s": found.peak_rate,
            "max_concurrent_requests": found.peak_concurrency,
            "concurrency": found.concurrency,
            "accept_length": found.accept_length,
        }
        for metric in METRICS:
            spread: Spread = getattr(found, metric)
            name = "e2e_latency" if metric == "e2el" else metric
            result[f"mean_{name}_ms"] = spread.mean
            result[f"median_{name}_ms"] = spread.percentile(50)
            result[f"std_{name}_ms"] = spread.std
            for percent in sorted({99.0, *self.percentiles(metric)}):
                result[f"p{percent:g}_{name}_ms"] = spread.percentile(percent)
        result["max_itl_ms"] = found.itl.most
        for name, spread in (("first_block", own.first_block), ("block", own.block)):
            result[f"mean_{name}_ms"] = spread.mean
            result[f"p50_{name}_ms"] = spread.percentile(50)
            result[f"p99_{name}_ms"] = spread.percentile(99)
        return result | {
            "block_length": own.block_length,
            "diffusion_tokens_per_forward": own.tokens_per_forward,
            "diffusion_forwards_per_request": own.forwards,
            "diffusion_eos_waste": own.eos_waste,
            "goals": dict(own.goals),
            "request_goodput": own.good_rate,
        }


def _head(title: str, fill: str) -> str:
    return f"{title:{fill}^{WIDTH}}"


def _row(label: str, value: Value) -> str:
    if value is None:
        shown = "n/a"
    else:
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<{LABEL_WIDTH}} {shown:<{VALUE_WIDTH}}"
