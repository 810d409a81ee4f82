"""Metrics of a run, computed from its answers; docs/reference/numbers.md defines each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from unmask.evals.run_folder import StoredAnswer

Metrics = dict[str, float]


def accuracy(right: Sequence[float]) -> Metrics:
    """Return the mean score and its standard error, sample deviation / sqrt(n) as in lm-eval.

    There is no standard error of a single document.
    """
    n = len(right)
    mean = sum(right) / n
    values = {"accuracy": mean}
    if n > 1:
        variance = sum((value - mean) ** 2 for value in right) / (n - 1)
        values["accuracy_stderr"] = math.sqrt(variance / n)
    return values


def quantile(values: Iterable[float], share: float) -> float:
    """Return the quantile of a share (0 to 1), interpolated linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def run_time(stored: Sequence[StoredAnswer], name: str) -> float:
    """Return the seconds of all answers: the sum of each process, and the maximum over parallel processes.

    Sessions (starts of the run) are sequential, so theirs are added.
    """
    sums: dict[int, dict[int, float]] = {}
    for item in stored:
        ranks = sums.setdefault(item.session, {})
        ranks[item.rank] = ranks.get(item.rank, 0.0) + getattr(item.answer, name)
    return sum(max(ranks.values()) for ranks in sums.values())


def speed(stored: Sequence[StoredAnswer], batch_size: int) -> Metrics:
    """Return counts, times and rates of generated answers, without those that were too long."""
    stored = [item for item in stored if not item.answer.is_too_long]
    answers = [item.answer for item in stored]
    counted = [answer.counted for answer in answers]
    decode_s, wall_s = run_time(stored, "decode_s"), run_time(stored, "wall_s")
    response, forwards = sum(c.response for c in counted), sum(a.num_forwards for a in answers)
    latencies = [answer.latency_s for answer in answers]
    values: Metrics = {
        "num_answers": len(answers),
        "prompt_tokens": sum(c.prompt for c in counted),
        "response_tokens": response,
        "committed_tokens": sum(c.committed for c in counted),
        "canvas_tokens": sum(c.canvas for c in counted),
        "num_forwards": forwards,
        "num_queries": sum(a.num_queries for a in answers),
        "num_draft_forwards": sum(a.num_draft_forwards for a in answers),
        "num_draft_queries": sum(a.num_draft_queries for a in answers),
        "num_wasted": sum(a.num_wasted for a in answers),
        "num_logit_rows": sum(a.num_logit_rows for a in answers),
        "num_forced": sum(a.num_forced for a in answers),
        "num_stopped": sum(a.finish_reason == "stop" for a in answers),
        "cache_bytes": max(a.cache_bytes for a in answers),
        "wall_s": wall_s,
        "decode_s": decode_s,
        "latency_mean_s": sum(latencies) / len(latencies),
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p95_s": quantile(latencies, 0.95),
        "batch_size": batch_size,
    }
    values |= _rates(values)
    if values["num_queries"]:
        values["waste"] = values["num_wasted"] / values["num_queries"]
    values["tok_s_fastdllm"] = sum(c.fastdllm for c in counted) / wall_s
    if batch_size == 1:
        pairs = list(zip(counted, latencies, strict=True))
        values["tok_s_d2cache"] = sum(c.d2cache / s for c, s in pairs) / len(pairs)
        values["tok_s_d2cache_full"] = sum(c.canvas / s for c, s in pairs) / len(pairs)
        steps = [(c.d2cache, a.num_forwards) for c, a in zip(counted, answers, strict=True)]
        values["tokens_per_step_d2cache"] = sum(t / n for t, n in steps) / len(steps)
    return values


def _rates(sums: Metrics) -> Metrics:
    return {
        "tokens_per_second": sums["response_tokens"] / sums["decode_s"],
        "committed_per_second": sums["committed_tokens"] / sums["decode_s"],
        "tokens_per_forward": sums["response_tokens"] / sums["num_forwards"],
        "committed_per_forward": sums["committed_tokens"] / sums["num_forwards"],
        "forwards_per_answer": sums["num_forwards"] / sums["num_answers"],
    }


def scoring(stored: Sequence[StoredAnswer], batch_size: int) -> Metrics:
    """Return counts and times of answers by likelihood, without those that were too long."""
    stored = [item for item in stored if not item.answer.is_too_long]
    answers = [item.answer for item in stored]
    return {
        "num_answers": len(answers),
        "prompt_tokens": sum(a.counted.prompt for a in answers),
        "scored_tokens": sum(a.counted.response for a in answers),
        "num_forwards": sum(a.num_forwards for a in answers),
        "num_queries": sum(a.num_queries for a in answers),
        "num_logit_rows": sum(a.num_logit_rows for a in answers),
        "wall_s": run_time(stored, "wall_s"),
        "decode_s": run_time(stored, "decode_s"),
        "batch_size": batch_size,
    }


def aup(points: Sequence[tuple[float, float]]) -> float | None:
    """Compute the accuracy under parallelism of `(tokens per forward, accuracy in percent)` points.

    `r1 y1 + sum of (r_i - r_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2` over points by growing
    parallelism, `W(y) = min(exp(-3 (1 - y / y_max)), 1)`; points more than 5 below the first are
    dropped. None without points. Source: the leaderboard of hao-ai-lab's d3LLM.
    """
    ordered = sorted(points)
    if not ordered:
        return None
    first = ordered[0][1]
    curve = [(r, y) for r, y in ordered if y >= first - 5]
    best = max(y for _, y in curve)

    def weighted(y: float) -> float:
        return y * min(math.exp(-3 * (1 - y / best)), 1.0) if best > 0 else 0.0

    area = curve[0][0] * curve[0][1]
    for (r0, y0), (r1, y1) in pairwise(curve):
        area += (r1 - r0) * (weighted(y1) + weighted(y0)) / 2
    return area
