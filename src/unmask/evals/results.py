"""Results of runs: the file results.json, and tables of one run and of several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from unmask.canvas import Floats
from unmask.durable import write_text
from unmask.errors import ConfigError
from unmask.evals.convergence import CONFIDENCE
from unmask.evals.metrics import accuracy, aup
from unmask.plain_text import markdown_text, one_line

FILE = "results.json"
FORMAT = "unmask-eval"
VERSION = 1
NOT_JUDGED = "not judged"
HEAD = "|Tasks|Filter|n-shot|Metric|Value||Stderr|\n|---|---|---:|---|---:|---|---:|"


@dataclass(frozen=True)
class Results:
    """Content of results.json.

    `metrics`: numbers by name, as defined in docs/reference/numbers.md, without those that do not apply.
    `right[i]`: score of document `docs[i]`; empty, with `scores`, where programs were not run
    (`evals.judging`). `settings`: the `EvalSettings`. `resolved`: values chosen at
    run time: lengths, chat, dtype, device, `sandbox` (docs/explanation/running-code.md). `machine`:
    processor, versions. `scores`: every metric of the task with its standard error, as "metric,filter" and
    "metric_stderr,filter". `early`: for a run with traces, the mean score when all open positions are
    filled in after 0, 5, ... 100 % of the forwards (`evals.convergence`).
    """

    task: str
    model: str
    method: str
    cache: str
    metrics: dict[str, float]
    docs: tuple[int, ...]
    right: tuple[float, ...]
    settings: Mapping[str, object]
    resolved: Mapping[str, object]
    machine: Mapping[str, object]
    scores: dict[str, float]
    date: str
    version: str
    commit: str | None = None
    early: tuple[float, ...] = field(default=())
    format: str = FORMAT
    format_version: int = VERSION

    @property
    def is_judged(self) -> bool:
        """True if the answers have scores."""
        return "accuracy" in self.metrics

    def write(self, folder: Path) -> None:
        """Write results.json atomically."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        write_text(folder / FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read the results of a run folder. Raises ConfigError for a missing file and another format."""
        path = folder / FILE if folder.is_dir() else folder
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be read: {error.strerror}; give a run folder of unmask eval"
            ) from None
        except (ValueError, RecursionError):
            raise ConfigError(
                f"{str(path)!r} is not JSON; give a run folder of unmask eval"
            ) from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ConfigError(f"{str(path)!r} was not written by unmask eval; give its run folder")
        version = record.get("format_version")
        if version != VERSION:
            raise ConfigError(
                f"{str(path)!r} has format_version={version!r}, this unmask reads {VERSION}"
            )
        try:
            for name in ("docs", "right", "early"):
                record[name] = tuple(record[name])
            return cls(**{item.name: record[item.name] for item in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{str(path)!r} is incomplete ({error!r}); run the evaluation again"
            ) from None


@dataclass(frozen=True)
class EvalRun:
    """The results of a run folder; `name` distinguishes the run from others in a comparison."""

    name: str
    folder: Path
    results: Results

    def confidence_map(self) -> Floats:
        """Return the mean confidence `(K, P)` at forward `k` in open position `p`; empty without traces.

        NaN where no document has an open position.
        """
        path = self.folder / CONFIDENCE
        if not path.exists():
            return np.zeros((0, 0))
        rows = json.loads(path.read_text(encoding="utf-8"))
        return np.array([[np.nan if cell is None else cell for cell in row] for row in rows])


def read_runs(folders: Sequence[str | Path]) -> list[EvalRun]:
    """Read runs, each named by the shortest distinct end of its path. Raises ConfigError."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ConfigError("no runs; give the folders that unmask eval wrote")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ConfigError(f"a run is listed twice among {', '.join(map(str, folders))}")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return [
        EvalRun("/".join(end.parts[-depth:]), path, Results.read(path))
        for end, path in zip(resolved, paths, strict=True)
    ]


def report(runs: Sequence[EvalRun]) -> str:
    """Return the table of the runs, and the AUP over those of one task and model, as Markdown."""
    lines = [side_by_side([run.name for run in runs], [run.results for run in runs])]
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        metrics = run.results.metrics
        if "tokens_per_forward" in metrics and run.results.is_judged:
            point = metrics["tokens_per_forward"], 100 * metrics["accuracy"]
            groups.setdefault((run.results.task, run.results.model), []).append(point)
    for (task, model), points in groups.items():
        area = aup(points)
        if area is not None and len(points) > 1:
            subject = markdown_text(f"{task} with {model}")
            lines.append(f"AUP of {subject} over {len(points)} runs: {area:.1f}\n")
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """Return the text of results.md: lm-eval's table, speed, and the origin of the numbers."""
    head = f"{results.task}: {results.model}, {results.method}, cache {results.cache}"
    lines = [markdown_text(head), "", HEAD]
    shots = results.resolved["num_fewshot"]
    for name, value in results.scores.items():
        metric, _, filter_name = name.partition(",")
        if not metric.endswith("_stderr"):
            error = results.scores.get(f"{metric}_stderr,{filter_name}")
            cell = "N/A" if error is None else f"{error:.4f}"
            names = (
                markdown_text(str(each)) for each in (results.task, filter_name, shots, metric)
            )
            lines.append(f"|{'|'.join(names)}|{value:.4f}|±|{cell}|")
    if not results.is_judged:
        lines.append(f"|{results.task}|{NOT_JUDGED}|{shots}||||")
    lines += ["", speed_line(results), "", one_line(origin_line(results))]
    return "\n".join(lines) + "\n"


def speed_line(results: Results) -> str:
    """Return throughput, parallelism, latency and memory in one line."""
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
    if "waste" in m:
        parts.append(f"{100 * m['waste']:.0f} % of the queries right of an end")
    parts.append(f"{m['num_forwards']:.0f} forwards in {m['decode_s']:.1f} s")
    parts.append(f"peak memory {m['peak_memory_bytes'] / 2**20:.0f} MiB")
    return " | ".join(parts)


def documents(results: Results) -> str:
    """Return the number of documents, and of those that the model's context does not hold."""
    num_too_long = results.metrics.get("num_too_long", 0)
    note = f" ({num_too_long:.0f} too long for the context: wrong)" if num_too_long else ""
    return f"{results.metrics['num_docs']:.0f} documents{note}"


def origin_line(results: Results) -> str:
    """Return machine, versions and settings of a run in one line."""
    facts, resolved, commit = results.machine, results.resolved, results.commit
    short = "no checkout" if commit is None else commit[:12] + commit[40:]
    return (
        f"{documents(results)} | batch {results.settings['batch_size']} | "
        f"{resolved['num_processes']} process(es) | {resolved['dtype']} on "
        f"{facts['accelerator'] or facts['processor']}, {facts['num_threads']} thread(s), load "
        f"{facts['load_average']} | seed {results.settings['seed']} | "
        + (f"answers run behind {resolved['sandbox']} | " if "sandbox" in resolved else "")
        + f"unmask {results.version} at "
        f"{short}, torch {facts['torch']} | {results.date}"
    )


def side_by_side(names: Sequence[str], runs: Sequence[Results]) -> str:
    """Return a table with one row per run, compared with the first run on the documents in common."""
    lines = [
        "|run|task|method|cache|accuracy|against the first|tok/s|speed-up|tokens/forward|forwards/answer|"
        "waste|latency p50 s|p95 s|Fast-dLLM tok/s|",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = runs[0]
    for name, run in zip(names, runs, strict=True):
        m = run.metrics
        cells = [
            *(name, run.task, run.method, run.cache, accuracy_cell(m)),
            "" if run is first else paired(first, run),
            _cell(m, "tokens_per_second", ".1f"),
            _ratio(m, first.metrics) if run.task == first.task else "",
            _cell(m, "tokens_per_forward", ".2f"),
            _cell(m, "forwards_per_answer", ".1f"),
            _cell(m, "waste", ".0%"),
            _cell(m, "latency_p50_s", ".3f"),
            _cell(m, "latency_p95_s", ".3f"),
            _cell(m, "tok_s_fastdllm", ".1f"),
        ]
        lines.append("|" + "|".join(map(markdown_text, cells)) + "|")
    return "\n".join(lines) + "\n"


def accuracy_cell(metrics: Mapping[str, float]) -> str:
    """Return the accuracy in percent with its standard error, or that nothing was judged."""
    if "accuracy" not in metrics:
        return NOT_JUDGED
    error = metrics.get("accuracy_stderr")
    more = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * metrics['accuracy']:.1f}{more} %"


def paired(first: Results, run: Results) -> str:
    """Return the gain in accuracy over the first run in points, ± the paired standard error."""
    if run.task != first.task:
        return "other task"
    if not (first.is_judged and run.is_judged):
        return NOT_JUDGED
    gain = paired_gain(first, run)
    if gain is None:
        return "no common documents"
    return f"{100 * gain[0]:+.1f} ± {100 * gain[1]:.1f}"


def paired_gain(first: Results, run: Results) -> tuple[float, float] | None:
    """Return the mean gain in score over the first run, and its paired standard error.

    None for another task, and for fewer than two judged documents in common.
    """
    if run.task != first.task or not (first.is_judged and run.is_judged):
        return None
    before = dict(zip(first.docs, first.right, strict=True))
    gains = [
        right - before[doc] for doc, right in zip(run.docs, run.right, strict=True) if doc in before
    ]
    if len(gains) < 2:
        return None
    mean = accuracy(gains)
    return mean["accuracy"], mean["accuracy_stderr"]


def _cell(metrics: Mapping[str, float], name: str, spec: str) -> str:
    return format(metrics[name], spec) if name in metrics else "-"


def _ratio(metrics: Mapping[str, float], first: Mapping[str, float]) -> str:
    name = "tokens_per_second"
    if name not in metrics or not first.get(name):
        return "-"
    return f"{metrics[name] / first[name]:.2f}x"
