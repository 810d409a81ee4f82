"""Prompt sets of the study: held-out ones, and shifted versions of them with the same answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from unmask.demo import words
from unmask.demo.tasks import Example, held_out_set

FACTOR = 13
"""What the numbers of the set `large` are multiplied by: most then have three digits."""
NEW_NAMES = ("Priya", "Tariq", "Yuki", "Ngozi", "Bjorn", "Chidi", "Ximena", "Raj", "Wei", "Aoife")
REWORDED = {
    "buys": "purchases",
    "gets": "receives",
    "finds": "discovers",
    "loses": "misplaces",
    "gives": "hands",
    "sells": "trades",
    "eats": "consumes",
    "wins": "earns",
    "How many": "What number of",
    "starts with": "initially owns",
}
NOISE = "The weather outside is cold and windy."
DISTRACTOR = "There are 14 birds in the old tree."


def word(n: int) -> list[Example]:
    """Return held-out word problems of the final distribution."""
    return held_out_set("word_problem", n)


def sudoku(n: int) -> list[Example]:
    """Return held-out 4x4 Sudokus with 8 blanks."""
    return held_out_set("sudoku", n, blanks=8)


def names(n: int) -> list[Example]:
    """Return word problems with names of people that are not in the training data."""
    known = (*words.BOYS, *words.GIRLS)
    new = {name: NEW_NAMES[i % len(NEW_NAMES)] for i, name in enumerate(known)}
    pattern = re.compile(rf"\b({'|'.join(known)})\b")
    return [_reworded(e, pattern.sub(lambda found: new[found[0]], e.prompt)) for e in word(n)]


def reworded(n: int) -> list[Example]:
    """Return word problems with verbs and questions that are not in the training data."""
    pattern = re.compile(rf"\b({'|'.join(REWORDED)})\b")
    usable = [e for e in word(3 * n) if pattern.search(e.prompt)]
    return [
        _reworded(e, pattern.sub(lambda found: REWORDED[found[0]], e.prompt)) for e in usable[:n]
    ]


def noise(n: int) -> list[Example]:
    """Return word problems with an unrelated sentence without numbers before the question."""
    return [_reworded(e, _before_question(e.prompt, NOISE)) for e in word(n)]


def distractor(n: int) -> list[Example]:
    """Return word problems with an unrelated sentence with a number before the question."""
    return [_reworded(e, _before_question(e.prompt, DISTRACTOR)) for e in word(n)]


def large(n: int) -> list[Example]:
    """Return additions and subtractions with every number times 13, outside of the training range."""
    found: list[Example] = []
    for example in held_out_set("word_problem", 6 * n):
        if "*" not in example.answer and "/" not in example.answer:
            prompt, answer = _scaled(example.prompt), _scaled(example.answer)
            found.append(replace(example, prompt=prompt, answer=answer))
    return found[:n]


def dots(n: int) -> list[Example]:
    """Return Sudokus with dots instead of zeros as blanks."""
    return [_reworded(e, e.prompt.replace("0", ".")) for e in sudoku(n)]


SETS: dict[str, Callable[[int], list[Example]]] = {
    made.__name__: made for made in (word, sudoku, names, reworded, noise, distractor, large, dots)
}


def is_invalid(example: Example, text: str) -> bool:
    """Return True for an answer without the form: `#### N` at the end, or a 4x4 grid of digits."""
    if example.task == "sudoku":
        return re.fullmatch(r"([1-4]{4}\n){3}[1-4]{4}", text.strip()) is None
    return re.search(r"(^|\n)#### \d+\Z", text.strip()) is None


def _reworded(example: Example, prompt: str) -> Example:
    return replace(example, prompt=prompt)


def _before_question(prompt: str, sentence: str) -> str:
    """Insert a sentence before the last one of a prompt."""
    cut = re.search(r"(?<=[.!?]) (?=[^.!?]*\?\Z)", prompt)
    assert cut is not None, f"no question at the end of {prompt!r}"
    return f"{prompt[: cut.start()]} {sentence} {prompt[cut.end() :]}"


def _scaled(text: str) -> str:
    return re.sub(r"\d+", lambda found: str(int(found[0]) * FACTOR), text)
