"""Rewards of reinforcement learning by the judges of the tasks: `rl.reward=unmask.evals.rewards:NAME`.

A row has the texts `prompt` and `response`, and for a puzzle in a longer prompt its text in `key`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from unmask.evals.tasks import judges
from unmask.evals.tasks.judges import DemoDoc

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _doc(row: Mapping[str, object]) -> DemoDoc:
    prompt = str(row["prompt"])
    return DemoDoc(prompt=prompt, answer=str(row["response"]), key=str(row.get("key") or prompt))


def countdown(row: Mapping[str, object], answer: str) -> float:
    """Return 1.0 if the first line uses every number of the puzzle once and ends at the target."""
    return judges.countdown(_doc(row), [answer])["right"]


def sudoku(row: Mapping[str, object], answer: str) -> float:
    """Return 1.0 if the grid solves the puzzle."""
    return judges.sudoku(_doc(row), [answer])["right"]


def word_problem(row: Mapping[str, object], answer: str) -> float:
    """Return 1.0 if the last line is that of the response, `#### N`."""
    return judges.word_problem(_doc(row), [answer])["right"]


def last_number(row: Mapping[str, object], answer: str) -> float:
    """Return 1.0 if the answer's last number equals that of the response, as GSM8K is scored."""
    found, right = (_NUMBER.findall(text) for text in (answer, str(row["response"])))
    if not found or not right:
        return 0.0
    return float(float(found[-1].replace(",", "")) == float(right[-1].replace(",", "")))
