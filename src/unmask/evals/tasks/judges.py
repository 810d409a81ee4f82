"""Whether answers are right: the `process_results` of our task files."""

from __future__ import annotations

from typing import Any

from unmask.demo.example import Example
from unmask.demo.tasks import check
from unmask.errors import DependencyError
from unmask.evals.code import humaneval_program, mbpp_program
from unmask.evals.sandbox import run_program

Metrics = dict[str, float]


def _demo(task: str, doc: dict[str, Any], results: list[str]) -> Metrics:
    example = Example(task, doc["prompt"], doc["answer"], doc["key"])
    return {"right": float(check(example, results[0]))}


def word_problem(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The last line is the expected `#### N`."""
    return _demo("word_problem", doc, results)


def sudoku(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The grid is the solution.

    Puzzles with few given digits may have several: any completed grid that keeps the givens is right.
    """
    from unmask.demo.puzzles import solutions

    puzzle = doc["key"].removeprefix("Sudoku\n").replace("\n", "")
    rows = "".join(results[0].split())
    return {"right": float(rows in solutions(puzzle))}


def countdown(doc: dict[str, Any], results: list[str]) -> Metrics:
    """The equations use every number once and end at the target."""
    lines = results[0].strip().splitlines()
    example = Example("countdown", doc["key"], doc["answer"], doc["key"])
    if not doc["key"].startswith("Countdown "):  # bundled: the prompt holds the puzzle
        example = Example("countdown", doc["prompt"], doc["answer"], doc["key"])
    return {"right": float(bool(lines) and check(example, lines[0]))}


def math500(doc: dict[str, Any], results: list[str]) -> Metrics:
    """math-verify finds the answer equal to the reference. Raises DependencyError without it."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise DependencyError(
            "math-500 needs math-verify, which is not installed; pip install 'unmask[eval]'"
        ) from None
    gold = parse(f"${doc['answer']}$")
    return {"math_verify": float(verify(gold, parse(results[0])))}


def humaneval(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The answer's function passes the problem's check."""
    program = humaneval_program(doc["prompt"], results[0], doc["entry_point"])
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(run_program(f"{program}\n\n{tests}").passed)}


def mbpp(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The answer's code passes all of the problem's assertions."""
    program = mbpp_program(results[0])
    tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
    return {"pass_at_1": float(run_program(f"{program}\n\n{tests}\n").passed)}
