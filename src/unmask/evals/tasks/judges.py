"""Scoring of answers: the `process_results` of the task files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from unmask.demo.example import Example
from unmask.demo.puzzles import solutions
from unmask.demo.tasks import check
from unmask.errors import DependencyError
from unmask.evals.code import definitions, humaneval_program, longest_program, mbpp_program
from unmask.evals.sandbox import judge_answer

Metrics = dict[str, float]


class DemoDoc(TypedDict):
    """A document of a task of the demo model; `key` has the puzzle of a public set."""

    prompt: str
    answer: str
    key: str


class MbppDoc(TypedDict):
    """A document of MBPP: the reference solution, code before the tests, and assertions."""

    code: str
    test_setup_code: str
    test_list: list[str]


def word_problem(doc: DemoDoc, results: Sequence[str]) -> Metrics:
    """Check that the last line is the expected `#### N`."""
    example = Example("word_problem", doc["prompt"], doc["answer"], doc["key"])
    return {"right": float(check(example, results[0]))}


def sudoku(doc: DemoDoc, results: Sequence[str]) -> Metrics:
    """Check that the grid solves the puzzle; any solution of a puzzle with several is right."""
    puzzle = doc["key"].removeprefix("Sudoku\n").replace("\n", "")
    rows = "".join(results[0].split())
    return {"right": float(rows in solutions(puzzle))}


def countdown(doc: DemoDoc, results: Sequence[str]) -> Metrics:
    """Check that the equations use every number once and end at the target."""
    lines = results[0].strip().splitlines()
    is_public = doc["key"].startswith("Countdown ")  # else the prompt is the puzzle
    puzzle = doc["key"] if is_public else doc["prompt"]
    example = Example("countdown", puzzle, doc["answer"], doc["key"])
    return {"right": float(bool(lines) and check(example, lines[0]))}


def mmlu(doc: Mapping[str, int], results: Sequence[tuple[float, bool]]) -> Metrics:
    """Check that the likeliest choice, the first of several, is right; a miss if one did not fit."""
    likelihoods = [likelihood for likelihood, _ in results]
    best = max(range(len(results)), key=likelihoods.__getitem__)
    return {"acc": float(min(likelihoods) > -math.inf and best == doc["answer"])}


def math500(doc: Mapping[str, str], results: Sequence[str]) -> Metrics:
    """Compare the answer with the reference by math-verify. Raises DependencyError without it."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise DependencyError(
            "math-500 needs math-verify, which is not installed; pip install 'unmask[eval]'"
        ) from None
    gold = parse(f"${doc['answer']}$")
    return {"math_verify": float(verify(gold, parse(results[0])))}


def humaneval(doc: Mapping[str, str], results: Sequence[str]) -> Metrics:
    """Run the check of the problem on the function of the answer.

    The other functions of the prompt, which some checks use, are those of the prompt, not the answer's.
    """
    entry_point = doc["entry_point"]
    program = humaneval_program(doc["prompt"], results[0], entry_point)
    tests = f"{doc['test']}\ncheck({entry_point})\n"
    given = longest_program(doc["prompt"])
    verdict = judge_answer(program, tests, given=given, entry_points=[entry_point])
    return {"pass_at_1": float(verdict.passed)}


def mbpp(doc: MbppDoc, results: Sequence[str]) -> Metrics:
    """Run all assertions of the problem on the code of the answer."""
    tests = "\n".join([doc["test_setup_code"], *doc["test_list"]])
    called = set(re.findall(r"[A-Za-z_]\w*", tests))
    entry_points = [name for name in definitions(doc["code"]) if name in called]
    verdict = judge_answer(mbpp_program(results[0]), tests, entry_points=entry_points)
    return {"pass_at_1": float(verdict.passed)}
