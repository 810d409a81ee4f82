"""Results as Markdown: lm-eval's table with a speed line, and runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.evals.results import Results

HEAD = "|Tasks|Filter|n-shot|Metric|Value||Stderr|\n|---|---|---:|---|---:|---|---:|"


def markdown(results: Results) -> str:
    """results.md."""
    lines = [f"{results.task}: {results.model}, {results.method}, cache {results.cache}", "", HEAD]
    shots = results.resolved["num_fewshot"]
    for name, value in results.scores.items():
        metric, _, filter_name = name.partition(",")
        if not metric.endswith("_stderr"):
            error = results.scores.get(f"{metric}_stderr,{filter_name}")
            told = "N/A" if error is None else f"{error:.4f}"
            lines.append(f"|{results.task}|{filter_name}|{shots}|{metric}|{value:.4f}|±|{told}|")
    lines += ["", speed_line(results), "", origin_line(results)]
    return "\n".join(lines) + "\n"


def speed_line(results: Results) -> str:
    """Throughput, parallelism, latency and memory in a line."""
    m = results.metrics
    parts = []
    if "tokens_per_second" in m:
        parts = [
            f"{m['tokens_per_second']:.1f} response tokens/s ({m['committed_per_second']:.1f} committed)",
            f"{m['tokens_per_forward']:.2f} tokens/forward",
            f"{m['forwards_per_answer']:.1f} forwards/answer",
            f"latency mean {m['latency_mean_s']:.3f} s, p50 {m['latency_p50_s']:.3f}, "
            f"p95 {m['latency_p95_s']:.3f}",
            f"Fast-dLLM's rule {m['tok_s_fastdllm']:.1f} tok/s",
        ]
    if "tok_s_d2cache" in m:
        parts.append(f"d2Cache's {m['tok_s_d2cache']:.1f}")
    parts.append(f"{m['num_forwards']:.0f} forwards in {m['decode_s']:.1f} s")
    parts.append(f"peak memory {m['peak_memory_bytes'] / 2**20:.0f} MiB")
    return " | ".join(parts)


def origin_line(results: Results) -> str:
    """Where and how the numbers were made."""
    facts, settled = results.machine, results.resolved
    return (
        f"{results.metrics['num_docs']:.0f} documents | batch {results.settings['batch_size']} | "
        f"{settled['num_processes']} process(es) | {settled['dtype']} on "
        f"{facts['accelerator'] or facts['processor']}, {facts['num_threads']} thread(s), load "
        f"{facts['load_average']} | seed {results.settings['seed']} | unmask {results.version} at "
        f"{_short(results.commit)}, torch {facts['torch']} | {results.date}"
    )


def _short(commit: str | None) -> str:
    return "no checkout" if commit is None else commit[:12] + commit[40:]


def side_by_side(names: Sequence[str], runs: Sequence[Results]) -> str:
    """One row a run; differences in accuracy are from the first run, over the documents both have."""
    lines = [
        "|run|task|method|cache|accuracy|against the first|tok/s|speed-up|tokens/forward|forwards/answer|"
        "latency p50 s|p95 s|Fast-dLLM tok/s|",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = runs[0]
    for name, run in zip(names, runs, strict=True):
        m = run.metrics
        error = m.get("accuracy_stderr")
        told = (
            f"{100 * m['accuracy']:.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " %"
        )
        cells = [name, run.task, run.method, run.cache, told]
        cells.append("" if run is first else paired(first, run))
        cells += [
            _cell(m, "tokens_per_second", ".1f"),
            _ratio(m, first.metrics) if run.task == first.task else "",
            _cell(m, "tokens_per_forward", ".2f"),
            _cell(m, "forwards_per_answer", ".1f"),
            _cell(m, "latency_p50_s", ".3f"),
            _cell(m, "latency_p95_s", ".3f"),
            _cell(m, "tok_s_fastdllm", ".1f"),
        ]
        lines.append("|" + "|".join(cell.replace("|", "\\|") for cell in cells) + "|")
    return "\n".join(lines) + "\n"


def paired(first: Results, run: Results) -> str:
    """Points of accuracy that a run has more, with the standard error of the paired difference."""
    if run.task != first.task:
        return "other task"
    before = dict(zip(first.docs, first.right, strict=True))
    pairs = [
        (before[doc], right)
        for doc, right in zip(run.docs, run.right, strict=True)
        if doc in before
    ]
    if len(pairs) < 2:
        return "no common documents"
    gains = [after - old for old, after in pairs]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return f"{100 * mean:+.1f} ± {100 * (variance / len(gains)) ** 0.5:.1f}"


def _cell(metrics: dict[str, float], name: str, form: str) -> str:
    return format(metrics[name], form) if name in metrics else "-"


def _ratio(metrics: dict[str, float], first: dict[str, float]) -> str:
    name = "tokens_per_second"
    if name not in metrics or not first.get(name):
        return "-"
    return f"{metrics[name] / first[name]:.2f}x"
