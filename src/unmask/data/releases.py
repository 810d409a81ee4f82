"""The public sets in the forms of their releases: rows with the fields that prompts and scores need.

Each function reads a folder or a file and returns checked documents. A row without a question or an answer
is refused with its line: it could only be scored wrong, or right by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.data.records import (
    SUFFIXES,
    DataRow,
    find_files,
    read_cells,
    read_rows,
    shown,
    table_row,
)
from unmask.errors import ConfigError

LETTERS = "ABCD"
HELP = "docs/reference/tasks.md says what belongs there"
_FINAL = re.compile(r"[-+]?\$?[0-9][0-9,]*(\.[0-9]+)?%?\.?")
_BOXED = re.compile(r"\\boxed\s*\{|\\boxed\s+(?=[^\s{])|\\fbox\s*\{")
_GRID = re.compile(r"[0-4]{4}(\n[0-4]{4}){3}")
_QUESTION, _ANSWER = ("question", "input"), ("answer", "target")


def split_rows(folder: Path, *stems: str) -> list[DataRow]:
    """Read the files of a split by the first stem that is there. Raises ConfigError if none is."""
    for stem in stems:
        if files := find_files(folder, stem):
            return [row for file in files for row in read_rows(file)]
    names = " or ".join(f"{folder.name}/{stem}{SUFFIXES[0]}" for stem in stems)
    raise ConfigError(f"data={str(folder.parent)!r} has no {names}; {HELP}")


def gsm8k_document(row: DataRow) -> dict[str, str]:
    """Return question and answer; the answer ends with `#### N`, or is N (MGSM: `answer_number`)."""
    question = row.text("question")
    if not row.has("answer") and row.has("answer_number"):
        return {"question": question, "answer": f"#### {row.whole('answer_number')}"}
    answer = row.text("answer")
    final = answer.rpartition("####")[2].strip()
    if not _FINAL.fullmatch(final):
        raise row.error(
            f": answer={shown(final)} must end with '#### ' and a number, or be a number"
        )
    return {"question": question, "answer": answer}


def gsm8k(folder: Path, split: str) -> list[dict[str, str]]:
    """Return the documents of a split of GSM8K."""
    return [gsm8k_document(row) for row in split_rows(folder, split)]


def math_problems(folder: Path) -> list[dict[str, str]]:
    """Return problems, solutions and answers: MATH-500, or MATH with its answers in `\\boxed`.

    `test` is a file, or as in MATH's own archive a folder with a file for each problem.
    """
    single = sorted((folder / "test").rglob("*.json"))
    rows = [row for path in single for row in read_rows(path)]
    return [_math(row) for row in rows or split_rows(folder, "test")]


def _math(row: DataRow) -> dict[str, str]:
    problem = row.text("problem")
    if row.has("answer"):
        solution = row.text("solution", may_be_empty=True) if row.has("solution") else ""
        return {"problem": problem, "solution": solution, "answer": row.text("answer")}
    solution = row.text("solution")
    answer = boxed(solution)
    if answer is None:
        raise row.error(": there is no answer, and the solution has no \\boxed{...}")
    return {"problem": problem, "solution": solution, "answer": answer}


def boxed(solution: str) -> str | None:
    """Return the content of the last `\\boxed{...}`; None without one, or if it is empty."""
    found = list(_BOXED.finditer(solution))
    if not found:
        return None
    start = found[-1].end()
    if not found[-1][0].endswith("{"):
        return solution[start:].split("$")[0].strip() or None
    depth = 1
    for at in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[at], 0)
        if depth == 0:
            return solution[start:at].strip() or None
    return None


def humaneval(folder: Path) -> list[dict[str, object]]:
    """Return prompts, tests and entry points."""
    documents = []
    for row in split_rows(folder, "HumanEval", "test"):
        document = {name: row.text(name) for name in ("task_id", "prompt", "test", "entry_point")}
        if not document["entry_point"].isidentifier():
            raise row.error(f": entry_point={shown(document['entry_point'])} is not a name")
        if "def check" not in document["test"]:
            raise row.error(": test has no function check")
        documents.append(document)
    return _distinct(folder, "task_id", documents)


def mbpp(folder: Path) -> dict[int, dict[str, object]]:
    """Return the problems by number: the original file, the sanitized one, or the hub's splits."""
    stems = ("mbpp", "sanitized-mbpp")
    if any(find_files(folder, stem) for stem in stems):
        rows = split_rows(folder, *stems)
    else:
        splits = ("prompt", "train", "validation", "test")
        files = [file for split in splits for file in find_files(folder, split)]
        rows = [row for file in files for row in read_rows(file)] or split_rows(folder, "mbpp")
    documents = _distinct(folder, "task_id", map(_mbpp, rows))
    return {each["task_id"]: each for each in documents if isinstance(each["task_id"], int)}


def _mbpp(row: DataRow) -> dict[str, object]:
    setup = row.values.get("test_setup_code") or ""
    if row.values.get("test_imports"):
        setup = "\n".join(row.texts("test_imports"))
    if not isinstance(setup, str):
        raise row.error(f": test_setup_code={shown(setup)} must be text")
    return {
        "task_id": row.whole("task_id"),
        "text": row.text("text", "prompt"),
        "code": row.text("code"),
        "test_setup_code": setup,
        "test_list": row.texts("test_list"),
    }


def _distinct(
    folder: Path, key: str, documents: Iterable[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return the documents without repetitions. Raises ConfigError for two that share a key."""
    by_key: dict[object, Mapping[str, object]] = {}
    for each in documents:
        if by_key.setdefault(each[key], each) != each:
            raise ConfigError(
                f"data={str(folder.parent)!r}: {folder.name} has two problems with {key}="
                f"{shown(each[key])}; remove one"
            )
    return [dict(each) for each in by_key.values()]


def sudoku(folder: Path) -> list[tuple[str, str]]:
    """Return puzzles and solutions of all files of a folder, as four lines of digits."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    if not files:
        raise ConfigError(f"data={str(folder.parent)!r} has no sudoku/*.jsonl; {HELP}")
    rows = [row for file in files for row in read_rows(file)]
    return [(_grid(row, "input", "Puzzle"), _grid(row, "output", "Solution")) for row in rows]


def _grid(row: DataRow, *names: str) -> str:
    name = row.field(*names)[0]
    text = row.text(name).strip()
    if re.fullmatch("[0-4]{16}", text):
        text = "\n".join(text[at : at + 4] for at in range(0, 16, 4))
    if not _GRID.fullmatch(text):
        raise row.error(f": {name}={shown(text)} must be four rows of four digits, 0 to 4")
    return text


def countdown(folder: Path, count: int) -> list[tuple[str, str]]:
    """Return puzzles of `count` numbers and a target, with commas between them, and solutions."""
    pairs = []
    for row in split_rows(folder, f"cd{count}_test"):
        puzzle = row.text("input").replace(" ", "")
        if not re.fullmatch(rf"[0-9]+(,[0-9]+){{{count}}}", puzzle):
            raise row.error(f": input={shown(puzzle)} must be {count} numbers and the target")
        pairs.append((puzzle, row.text("output")))
    return pairs


@dataclass(frozen=True)
class MmluQuestion:
    """A question with four choices; `answer` is the index of the right one."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        """The letter of the right choice."""
        return LETTERS[self.answer]


def mmlu(folder: Path, split: str) -> list[MmluQuestion]:
    """Return the questions of all subjects of a split ("test", "dev").

    A CSV file a subject in `folder/SPLIT` (or `folder/data/SPLIT`, as in the authors' archive), with a
    header, or without one as its authors ship it; else one file of rows, or the hub's Parquet files.
    """
    for root in (folder, folder / "data"):
        if files := sorted((root / split).glob(f"*_{split}.csv")):
            return [question for file in files for question in mmlu_subject(file)]
    files = find_files(folder, split)
    return [_mmlu_row(row) for file in files for row in read_rows(file)]


def mmlu_subject(path: Path) -> list[MmluQuestion]:
    """Return the questions of a CSV file, whose name is the subject's."""
    subject = re.sub("_(test|dev|val)$", "", path.stem)
    rows = read_cells(path)
    if not rows:
        raise ConfigError(f"{path} has no rows; give a file with at least one")
    names = [name.strip().lower() for name in rows[0][1]]
    if names[0] in _QUESTION and names[-1] in _ANSWER:
        rows = rows[1:]
    else:
        names = ["question", *LETTERS.lower(), "answer"]
    questions = []
    for line, cells in rows:
        if len(cells) != len(names):
            raise ConfigError(
                f"{path}, line {line} has {len(cells)} cells: it must be a question, four choices and "
                f"the answer"
            )
        questions.append(_mmlu_row(table_row(path, line, names, cells), subject))
    return questions


def _mmlu_row(row: DataRow, subject: str | None = None) -> MmluQuestion:
    if row.has("choices"):
        choices = row.texts("choices", count=len(LETTERS))
    else:
        choices = [row.text(f"choice{i}", each.lower(), each) for i, each in enumerate(LETTERS)]
    return MmluQuestion(
        subject=row.text("subject") if subject is None else subject,
        question=row.text(*_QUESTION),
        choices=tuple(choices),
        answer=_choice(row),
    )


def _choice(row: DataRow) -> int:
    """Return the index of the right choice, which is given as 0 to 3 or A to D."""
    name, value = row.field(*_ANSWER)
    text = value.strip().upper() if isinstance(value, str) else value
    if isinstance(text, str) and len(text) == 1 and text in LETTERS:
        return LETTERS.index(text)
    if isinstance(text, str) and not text.lstrip("-").isdigit():
        raise row.error(f": {name}={shown(value)} must be one of A to D, or 0 to 3")
    index = row.whole(*_ANSWER)
    if not 0 <= index < len(LETTERS):
        raise row.error(f": {name}={index} must be 0 to 3, the number of the right choice")
    return index
