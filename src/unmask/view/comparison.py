"""A comparison of runs for people: a table, and one HTML file with plots and a browser of all answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.engine.token_text import TokenTexts
from unmask.evals.comparison import Record
from unmask.evals.results import EvalRun
from unmask.evals.samples import EvalSample, read_samples
from unmask.evals.traces import edits_of, opening
from unmask.pictures.film import film_of
from unmask.pictures.page import data_of
from unmask.plain_text import one_line, printable, script_json

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

PAGE = Path(__file__).parent / "comparison.html"
MARK = "/*COMPARISON*/"
NONE = "-"
WIDE = 10_000
TITLES = (
    "run",
    "accuracy",
    "gain, points",
    "tokens/s",
    "speed-up",
    "tokens/forward",
    "forwards",
    "waste",
    "latency p50 s",
)


def cells(row: Record) -> list[str]:
    """Return the cells of a run's line, one for each of `TITLES`."""
    return [
        one_line(str(row["run"])),
        _percent(row, "accuracy", "") + " %",
        _percent(row, "gain", "+"),
        _number(row, "tokens_per_second", ".1f"),
        _number(row, "speed_up", ".2f"),
        _number(row, "tokens_per_forward", ".2f"),
        _number(row, "forwards_per_answer", ".1f"),
        _number(row, "waste", ".0%"),
        _number(row, "latency_p50_s", ".2f"),
    ]


def _number(row: Record, name: str, form: str) -> str:
    value = row[name]
    return format(value, form) if isinstance(value, (int, float)) else NONE


def _percent(row: Record, name: str, sign: str) -> str:
    value, error = row[name], row[f"{name}_stderr"]
    if not isinstance(value, float):
        return NONE
    more = f" ± {100 * error:.1f}" if isinstance(error, float) else ""
    return f"{100 * value:{sign}.1f}{more}"


def show(rows: Sequence[Record], console: Console) -> None:
    """Print the table, as Markdown unless on a terminal."""
    live = console.is_terminal
    if not live:
        console = Console(file=console.file, highlight=False, width=WIDE)
    table = Table(box=box.SIMPLE_HEAD if live else box.MARKDOWN, pad_edge=not live)
    for title in TITLES:
        table.add_column(title, justify="left" if title == TITLES[0] else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, cells(row)))
    console.print(table)


def page(
    runs: Sequence[EvalRun],
    rows: Sequence[Record],
    pictures: Sequence[Path],
    llm: LLM | None,
    max_docs: int,
) -> str:
    """Return the HTML file: it loads nothing, and no text in it is parsed as markup.

    `pictures`: SVG files, which become part of it. `llm`: the model whose tokenizer shows the traces; None:
    without traces. At most `max_docs` documents, those that most runs have wrong first.
    """
    samples = [{each.doc: each for each in read_samples(run.folder)} for run in runs]
    shared = [doc for doc in samples[0] if all(doc in others for others in samples)]
    docs = sorted(shared, key=lambda doc: (-sum(each[doc].is_wrong for each in samples), doc))
    first = runs[0].results
    shown = None if llm is None else _Shown(TokenTexts(llm.tokenizer), llm)
    data = {
        "title": printable(f"{first.task}: {len(runs)} runs of {first.model}"),
        "about": printable(
            f"unmask {first.version}, {first.date}, {len(shared)} documents in all runs"
        ),
        "table": [list(TITLES), *(cells(row) for row in rows)],
        "pictures": [
            {"about": path.stem.replace("_", " "), "source": _source(path)} for path in pictures
        ],
        "runs": [printable(run.name) for run in runs],
        "num_docs": len(shared),
        "docs": [_document([each[doc] for each in samples], shown) for doc in docs[:max_docs]],
    }
    return PAGE.read_text(encoding="utf-8").replace(MARK, script_json(data))


@dataclass(frozen=True)
class _Shown:
    """The model of the traces, and the texts of its tokens."""

    texts: TokenTexts
    llm: LLM


def _source(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:image/svg+xml;base64,{data}"


def _document(samples: Sequence[EvalSample], shown: _Shown | None) -> dict[str, object]:
    return {
        "doc": samples[0].doc,
        "prompt": printable(samples[0].prompt),
        "target": printable(samples[0].target),
        "answers": [
            {
                "text": printable(sample.text),
                "verdict": sample.verdict,
                "mark": "✗" if sample.is_wrong else "·" if sample.score is None else "✓",
                "is_wrong": sample.is_wrong,
                "num_forwards": sample.num_forwards,
                "num_tokens": sample.num_tokens,
                "film": _film(sample, shown),
            }
            for sample in samples
        ],
    }


def _film(sample: EvalSample, shown: _Shown | None) -> object:
    """Return the frames of an answer as data of the page; None without a trace."""
    if sample.trace is None or shown is None:
        return None
    canvas = opening(sample.trace, shown.llm.spec.mask_id)
    edits = ((edit, 0) for edit in edits_of(sample.trace))
    film = film_of(canvas, edits, shown.texts, frozenset(shown.llm.stop_ids))
    data = data_of(film)
    for number, cell in enumerate(data["cells"]):
        data["cells"][number] = (cell[0], printable(cell[1]), *cell[2:6], [], [])
    return {name: data[name] for name in ("kinds", "cells", "frames")}
