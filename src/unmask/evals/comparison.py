"""Comparison of runs as numbers: one record a run, and the records as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence

from unmask.evals.results import EvalRun, paired_gain
from unmask.plain_text import one_line

Record = dict[str, str | float | None]
COPIED = (
    "accuracy",
    "accuracy_stderr",
    "tokens_per_second",
    "tokens_per_forward",
    "forwards_per_answer",
    "waste",
    "latency_p50_s",
    "latency_p95_s",
    "num_docs",
    "num_too_long",
    "peak_memory_bytes",
)
"""Metrics of a run that a record repeats; docs/reference/numbers.md defines them."""
LATEX_COLUMNS = (
    ("run", "run", ""),
    ("cache", "cache", ""),
    ("accuracy (\\%)", "accuracy", "percent"),
    ("$\\Delta$ (points)", "gain", "percent"),
    ("tokens/s", "tokens_per_second", ".1f"),
    ("speed-up", "speed_up", ".2f"),
    ("tokens/forward", "tokens_per_forward", ".2f"),
    ("forwards", "forwards_per_answer", ".1f"),
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def records(runs: Sequence[EvalRun]) -> list[Record]:
    """Return a record a run; `gain`, `gain_stderr` and `speed_up` are relative to the first."""
    first = runs[0].results
    found: list[Record] = []
    for run in runs:
        results = run.results
        own, base = (each.metrics.get("tokens_per_second") for each in (results, first))
        gain = None if results is first else paired_gain(first, results)
        found.append(
            {
                "run": run.name,
                "task": results.task,
                "model": results.model,
                "method": results.method,
                "cache": results.cache,
                **{name: results.metrics.get(name) for name in COPIED},
                "gain": None if gain is None else gain[0],
                "gain_stderr": None if gain is None else gain[1],
                "speed_up": own / base if own and base else None,
                "folder": str(run.folder),
            }
        )
    return found


def as_csv(rows: Sequence[Record]) -> str:
    """Return the records as CSV with a header; a text that a spreadsheet would compute gets a quote."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row.values()])
    return file.getvalue()


def _csv_cell(value: str | float | None) -> str | float:
    if isinstance(value, str):
        text = one_line(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return "" if value is None else value


def as_latex(rows: Sequence[Record]) -> str:
    """Return the records as a table of the package booktabs."""
    head = " & ".join(title for title, _, _ in LATEX_COLUMNS)
    lines = [f"\\begin{{tabular}}{{ll{'r' * (len(LATEX_COLUMNS) - 2)}}}", "\\toprule"]
    lines += [f"{head} \\\\", "\\midrule"]
    for row in rows:
        cells = (_latex_cell(row, name, form) for _, name, form in LATEX_COLUMNS)
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_cell(row: Record, name: str, form: str) -> str:
    value = row[name]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "--"
    if isinstance(value, str):
        return latex_text(value)
    if form != "percent":
        return format(value, form)
    error = row[f"{name}_stderr"]
    sign = "+" if name == "gain" else ""
    more = f" \\pm {100 * error:.1f}" if isinstance(error, float) else ""
    return f"${100 * value:{sign}.1f}{more}$"


def latex_text(text: str) -> str:
    """Return a text on one line, escaped for LaTeX."""
    return re.sub(r"[\\~^&%$#_{}]", lambda match: _LATEX[match[0]], one_line(text))
