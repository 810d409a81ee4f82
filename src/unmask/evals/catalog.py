"""Catalog of the tasks: requirements, defaults, and the metric that is the accuracy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskEntry:
    """A task.

    `metric`, `filter`: lm-eval's metric that is the score of a document. `files`: data files below the data
    folder; empty for a bundled task. `needs_data`: True if there is no bundled set. `gen_length`: default
    number of positions. `num_fewshot`: default number of examples in the prompt. `own_shots`: the examples
    are written by the source, not by lm-eval. `choices`: answered by likelihood, not by generation.
    `runs_code`: answers are programs.
    """

    about: str
    metric: str = "exact_match"
    filter: str = "none"
    files: str = ""
    needs_data: bool = True
    gen_length: int = 256
    num_fewshot: int = 0
    own_shots: bool = False
    choices: bool = False
    runs_code: bool = False


def _gsm8k(about: str, num_fewshot: int, files: str) -> TaskEntry:
    return TaskEntry(about, filter="flexible-extract", files=files, num_fewshot=num_fewshot)


def _code(about: str, files: str, num_fewshot: int = 0) -> TaskEntry:
    return TaskEntry(
        about, "pass_at_1", files=files, gen_length=512, num_fewshot=num_fewshot, runs_code=True
    )


def _bundled(about: str, gen_length: int, files: str = "") -> TaskEntry:
    return TaskEntry(about, "right", files=files, needs_data=False, gen_length=gen_length)


_GSM8K = "gsm8k/train.jsonl, gsm8k/test.jsonl"
_MMLU = "mmlu/dev/*.csv, mmlu/test/*.csv"
_HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
_MBPP = "mbpp/mbpp.jsonl"

CATALOG: dict[str, TaskEntry] = {
    "word_problem": _bundled("held-out word problems of the bundled model", 64),
    "sudoku": _bundled(
        "4x4 Sudoku: bundled, 8 blanks; with data the public ones, 6 to 12 blanks",
        32,
        "sudoku/*.jsonl",
    ),
    "countdown": _bundled(
        "Countdown with 3 numbers: bundled; with data the public ones",
        32,
        "countdown/cd3_test.jsonl",
    ),
    "countdown4": TaskEntry(
        "Countdown with 4 numbers", "right", files="countdown/cd4_test.jsonl", gen_length=64
    ),
    "countdown5": TaskEntry(
        "Countdown with 5 numbers", "right", files="countdown/cd5_test.jsonl", gen_length=64
    ),
    "gsm8k": _gsm8k("grade-school math, examples from the train set", 5, _GSM8K),
    "gsm8k_cot": _gsm8k(
        "the same with the 8 worked examples of the CoT paper", 8, "gsm8k/test.jsonl"
    ),
    "math-500": TaskEntry(
        "500 competition problems, judged by math-verify",
        "math_verify",
        files="math500/test.jsonl",
        num_fewshot=4,
    ),
    "mmlu": TaskEntry(
        "57 subjects, four choices, by likelihood",
        "acc",
        files=_MMLU,
        num_fewshot=5,
        own_shots=True,
        choices=True,
    ),
    "mmlu_generative": TaskEntry(
        "the same, answered by generating the letter",
        filter="letter",
        files=_MMLU,
        gen_length=4,
        num_fewshot=5,
        own_shots=True,
    ),
    "humaneval": _code("164 Python functions, completed", _HUMANEVAL),
    "humaneval_instruct": _code("the same as instructions", _HUMANEVAL),
    "mbpp": _code("500 Python problems, in [BEGIN] and [DONE]", _MBPP, 3),
    "mbpp_instruct": _code("the same as instructions", _MBPP, 3),
}
