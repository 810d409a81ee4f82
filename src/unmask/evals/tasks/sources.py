"""Sources of the documents of each task.

lm-eval calls these functions with the metadata of the task; `data` is the data folder (`--metadata
'{"data": "..."}'` on lm-eval's own command line). Nothing is downloaded.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.demo.puzzles import COUNTDOWN_HEADER, SUDOKU_HEADER
from unmask.demo.tasks import held_out_set
from unmask.errors import ConfigError

# A task file that names one of these functions registers the model for plain `lm-eval run`.
from unmask.evals.lm import UnmaskLM  # noqa: F401
from unmask.evals.tasks import shots

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED_SIZE = 500
MBPP_TEST = range(11, 511)
MBPP_SHOTS = (2, 3, 4)
LETTERS = "ABCD"


def _splits(**rows: Iterable[dict[str, object]]) -> dict[str, Dataset]:
    from datasets import Dataset

    return {name: Dataset.from_list(list(items)) for name, items in rows.items()}


@functools.lru_cache(maxsize=8)
def _held_out(task: str, num_docs: int, blanks: int | None = None) -> dict[str, Dataset]:
    try:
        examples = held_out_set(task, num_docs, blanks=blanks)
    except ValueError as error:
        raise ConfigError(f"limit and offset ask for {num_docs} documents: {error}") from None
    return _splits(test=[{"prompt": e.prompt, "answer": e.answer, "key": e.key} for e in examples])


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


def read_lines(path: Path) -> list[dict[str, object]]:
    """Read the rows of a JSON-lines file, compressed by gzip or not. Raises ConfigError for a bad line."""
    open_file = gzip.open if path.suffix == ".gz" else open
    rows = []
    with open_file(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise ConfigError(f"{str(path)!r} line {number} is not JSON: {error}") from None
            if row is not None:
                rows.append(row)
    return rows


def word_problem(num_docs: int = BUNDLED_SIZE, **_: object) -> dict[str, Dataset]:
    """Return held-out word problems."""
    return _held_out("word_problem", num_docs)


def sudoku(
    num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: object
) -> dict[str, Dataset]:
    """Return held-out puzzles with 8 blanks, or all public ones in prompts with examples."""
    if data is None:
        return _held_out("sudoku", num_docs, blanks=8)
    folder = _file(data, "sudoku")
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read_lines(path)]
    return _public(rows, shots.sudoku, SUDOKU_HEADER)


def countdown(
    num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: object
) -> dict[str, Dataset]:
    """Return held-out puzzles with three numbers, or the public ones in prompts with examples."""
    if data is None:
        return _held_out("countdown", num_docs)
    return _public_countdown(data, 3)


def countdown4(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return public puzzles with four numbers."""
    return _public_countdown(data, 4)


def countdown5(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return public puzzles with five numbers."""
    return _public_countdown(data, 5)


def _public_countdown(data: str | None, count: int) -> dict[str, Dataset]:
    rows = read_lines(_file(data, f"countdown/cd{count}_test.jsonl"))
    return _public(rows, shots.countdown, COUNTDOWN_HEADER)


def _public(
    rows: Iterable[dict[str, object]], prompt_of: Callable[[str], str], header: str
) -> dict[str, Dataset]:
    pairs = [(str(row["input"]), row["output"]) for row in rows]
    return _splits(
        test=[
            {"prompt": prompt_of(puzzle), "answer": answer, "key": header + puzzle}
            for puzzle, answer in pairs
        ]
    )


def gsm8k(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return questions and answers of train and test set."""
    train, test = (_file(data, f"gsm8k/{name}.jsonl") for name in ("train", "test"))
    return _splits(train=read_lines(train), test=read_lines(test))


def gsm8k_test(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return questions and answers of the test set."""
    return _splits(test=read_lines(_file(data, "gsm8k/test.jsonl")))


def math500(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return problems, solutions and answers."""
    return _splits(test=read_lines(_file(data, "math500/test.jsonl")))


def humaneval(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return prompts, tests and entry points."""
    return _splits(test=read_lines(_file(data, "humaneval/HumanEval.jsonl.gz")))


def mbpp(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return problems 11 to 510, and 2, 3 and 4 as examples."""
    rows = {row["task_id"]: row for row in read_lines(_file(data, "mbpp/mbpp.jsonl"))}
    return _splits(
        test=[rows[id_] for id_ in MBPP_TEST if id_ in rows],
        prompt=[rows[id_] | {"is_fewshot": True} for id_ in MBPP_SHOTS if id_ in rows],
    )


def mmlu(data: str | None = None, shots: int = 5, **_: object) -> dict[str, Dataset]:
    """Return all subjects; each question follows `shots` answered ones of its subject."""
    return _splits(test=_mmlu_rows(_file(data, "mmlu"), int(shots)))


def _mmlu_rows(folder: Path, num_shots: int) -> Iterator[dict[str, object]]:
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
                text += f"{_question(row)} {LETTERS[int(row['answer'])]}\n\n"
        for row in _csv(path):
            answer = int(row["answer"])
            yield {"subject": subject, "prompt": text + _question(row), "answer": answer}


def _csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _question(row: dict[str, str]) -> str:
    choices = "".join(f"\n{letter}. {row[f'choice{i}']}" for i, letter in enumerate(LETTERS))
    return f"{row['question'].strip()}{choices}\nAnswer:"
