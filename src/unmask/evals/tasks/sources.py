"""Where the documents of each task come from.

lm-eval calls these with the task's metadata; `data` is the data folder (`--metadata '{"data": "..."}'` on
lm-eval's own command line). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unmask.demo.tasks import held_out_set
from unmask.errors import ConfigError

# A task file that names one of these functions makes the model known to plain `lm-eval run`.
from unmask.evals.lm import UnmaskLM  # noqa: F401

BUNDLED_SIZE = 500
Splits = dict[str, Any]


def _splits(**rows: Iterable[dict[str, Any]]) -> Splits:
    from datasets import Dataset

    return {name: Dataset.from_list(list(items)) for name, items in rows.items()}


def _held_out(task: str, num_docs: int, **options: Any) -> Splits:
    try:
        found = held_out_set(task, num_docs, **options)
    except ValueError as error:
        raise ConfigError(f"limit and offset ask for {num_docs} documents: {error}") from None
    rows = ({"prompt": item.prompt, "answer": item.answer, "key": item.key} for item in found)
    return _splits(test=rows)


def word_problem(num_docs: int = BUNDLED_SIZE, **_: Any) -> Splits:
    """Held-out word problems."""
    return _held_out("word_problem", num_docs)


def sudoku(num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: Any) -> Splits:
    """Held-out puzzles with 8 blanks."""
    return _held_out("sudoku", num_docs, blanks=8)


def countdown(num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: Any) -> Splits:
    """Held-out puzzles with three numbers."""
    return _held_out("countdown", num_docs)
