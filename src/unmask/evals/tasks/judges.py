"""Whether answers are right: the `process_results` of our task files."""

from __future__ import annotations

from typing import Any

from unmask.demo.example import Example
from unmask.demo.tasks import check

Metrics = dict[str, float]


def demo(task: str, doc: dict[str, Any], results: list[str]) -> Metrics:
    """Exactly right, by the bundled tasks' own checks."""
    example = Example(task, doc["prompt"], doc["answer"], doc["key"])
    return {"right": float(check(example, results[0]))}


def word_problem(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The last line is the expected `#### N`."""
    return demo("word_problem", doc, results)


def sudoku(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The grid is the only solution."""
    return demo("sudoku", doc, results)


def countdown(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The equations use every number once and end at the target."""
    return demo("countdown", doc, results)
