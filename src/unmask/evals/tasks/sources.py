"""Where the documents of each task come from.

lm-eval calls these with the task's metadata; `data` is the data folder (`--metadata '{"data": "..."}'` on
lm-eval's own command line). Nothing is downloaded.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unmask.demo.puzzles import COUNTDOWN_HEADER, SUDOKU_HEADER
from unmask.demo.tasks import held_out_set
from unmask.errors import ConfigError

# A task file that names one of these functions makes the model known to plain `lm-eval run`.
from unmask.evals.lm import UnmaskLM  # noqa: F401
from unmask.evals.tasks import shots

BUNDLED_SIZE = 500
MBPP_TEST = range(11, 511)
MBPP_SHOTS = (2, 3, 4)
LETTERS = "ABCD"
Rows = Iterable[dict[str, Any]]
Splits = dict[str, Any]


def _splits(**rows: Rows) -> Splits:
    from datasets import Dataset

    return {name: Dataset.from_list(list(items)) for name, items in rows.items()}


@functools.lru_cache(maxsize=8)
def _held_out(task: str, num_docs: int, blanks: int | None = None) -> Splits:
    try:
        found = held_out_set(task, num_docs, blanks=blanks)
    except ValueError as error:
        raise ConfigError(f"limit and offset ask for {num_docs} documents: {error}") from None
    return _splits(test=[{"prompt": e.prompt, "answer": e.answer, "key": e.key} for e in found])


def _file(data: str | None, name: str) -> Path:
    if data is None:
        raise ConfigError(
            f"no data folder was named, and {name} is needed; with lm-eval's command line give "
            f'--metadata \'{{"data": "FOLDER"}}\''
        )
    path = Path(data) / name
    if not path.exists():
        raise ConfigError(
            f"data={data!r} has no {name}; docs/reference/tasks.md says what belongs there"
        )
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, packed by gzip or not. Raises ConfigError for one that is no row."""
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise ConfigError(f"{str(path)!r} line {number} is no JSON: {error}") from None
            if row is not None:
                rows.append(row)
    return rows


def word_problem(num_docs: int = BUNDLED_SIZE, **_: Any) -> Splits:
    """Held-out word problems."""
    return _held_out("word_problem", num_docs)


def sudoku(num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: Any) -> Splits:
    """Held-out puzzles with 8 blanks, or all public ones in instructions with examples."""
    if data is None:
        return _held_out("sudoku", num_docs, blanks=8)
    folder = _file(data, "sudoku")
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read_lines(path)]
    return _splits(
        test=[
            {
                "prompt": shots.sudoku(row["input"]),
                "answer": row["output"],
                "key": SUDOKU_HEADER + row["input"],
            }
            for row in rows
        ]
    )


def countdown(num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: Any) -> Splits:
    """Held-out puzzles with three numbers, or the public ones in instructions with examples."""
    if data is None:
        return _held_out("countdown", num_docs)
    return _public_countdown(data, 3)


def countdown4(data: str | None = None, **_: Any) -> Splits:
    """Public puzzles with four numbers."""
    return _public_countdown(data, 4)


def countdown5(data: str | None = None, **_: Any) -> Splits:
    """Public puzzles with five numbers."""
    return _public_countdown(data, 5)


def _public_countdown(data: str | None, count: int) -> Splits:
    rows = read_lines(_file(data, f"countdown/cd{count}_test.jsonl"))
    return _splits(
        test=[
            {
                "prompt": shots.countdown(row["input"]),
                "answer": row["output"],
                "key": COUNTDOWN_HEADER + row["input"],
            }
            for row in rows
        ]
    )


def gsm8k(data: str | None = None, **_: Any) -> Splits:
    """Question and answer, train and test."""
    train, test = (_file(data, f"gsm8k/{name}.jsonl") for name in ("train", "test"))
    return _splits(train=read_lines(train), test=read_lines(test))


def gsm8k_test(data: str | None = None, **_: Any) -> Splits:
    """The test set alone."""
    return _splits(test=read_lines(_file(data, "gsm8k/test.jsonl")))


def math500(data: str | None = None, **_: Any) -> Splits:
    """Problem, solution and answer."""
    return _splits(test=read_lines(_file(data, "math500/test.jsonl")))


def humaneval(data: str | None = None, **_: Any) -> Splits:
    """Prompt, test and entry point."""
    return _splits(test=read_lines(_file(data, "humaneval/HumanEval.jsonl.gz")))


def mbpp(data: str | None = None, **_: Any) -> Splits:
    """Problems 11 to 510; 2, 3 and 4 are the examples."""
    rows = {row["task_id"]: row for row in read_lines(_file(data, "mbpp/mbpp.jsonl"))}
    return _splits(
        test=[rows[id_] for id_ in MBPP_TEST if id_ in rows],
        prompt=[rows[id_] | {"is_fewshot": True} for id_ in MBPP_SHOTS if id_ in rows],
    )


def mmlu(data: str | None = None, **told: Any) -> Splits:
    """All subjects; each question follows `shots` (5) answered ones of its subject."""
    return _splits(test=_mmlu_rows(_file(data, "mmlu"), int(told.get("shots", 5))))


def _mmlu_rows(folder: Path, num_shots: int) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        about = subject.replace("_", " ")
        text = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        if num_shots:
            examples = list(_csv(folder / "dev" / f"{subject}_dev.csv"))
            if len(examples) < num_shots:
                raise ConfigError(
                    f"num_fewshot={num_shots}: subject {subject} has {len(examples)} examples"
                )
            for row in examples[:num_shots]:
                text += f"{_asked(row)} {LETTERS[int(row['answer'])]}\n\n"
        for row in _csv(path):
            yield {"subject": subject, "prompt": text + _asked(row), "answer": int(row["answer"])}


def _csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _asked(row: dict[str, str]) -> str:
    choices = "".join(f"\n{letter}. {row[f'choice{i}']}" for i, letter in enumerate(LETTERS))
    return f"{row['question'].strip()}{choices}\nAnswer:"
