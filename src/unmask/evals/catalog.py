"""The tasks there are: what each needs, and which of its metrics is the accuracy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A task.

    `metric` and `filter` name what lm-eval computes for a document and what we call right. `files`: the
    data it reads below the data folder; empty: bundled. `needs_data`: there is no bundled set of that name.
    `gen_length`: slots when nothing else is said. `num_fewshot`: examples in the prompt when nothing else
    is said. `choices`: answered by likelihood, not by generation.
    """

    about: str
    metric: str = "exact_match"
    filter: str = "none"
    files: str = ""
    needs_data: bool = True
    gen_length: int = 256
    num_fewshot: int = 0
    choices: bool = False
    runs_code: bool = False


_GSM8K = "gsm8k/train.jsonl and gsm8k/test.jsonl"
_MMLU = "mmlu/dev/*.csv and mmlu/test/*.csv"
_HUMANEVAL = "humaneval/HumanEval.jsonl.gz"

CATALOG: dict[str, Entry] = {
    "word_problem": Entry(
        "held-out word problems of the bundled model", "right", needs_data=False, gen_length=64
    ),
    "sudoku": Entry(
        "4x4 Sudoku: bundled, 8 blanks; with data the public ones",
        "right",
        files="sudoku/*.jsonl",
        needs_data=False,
        gen_length=32,
    ),
    "countdown": Entry(
        "Countdown, 3 numbers: bundled; with data the public ones",
        "right",
        files="countdown/cd3_test.jsonl",
        needs_data=False,
        gen_length=32,
    ),
}
