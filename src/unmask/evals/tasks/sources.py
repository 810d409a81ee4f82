"""Sources of the documents of each task.

lm-eval calls these functions with the metadata of the task; `data` is the data folder (`--metadata
'{"data": "..."}'` on lm-eval's own command line). Nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.data import releases
from unmask.data.releases import HELP, LETTERS, MmluQuestion
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


def _splits(**rows: Iterable[Mapping[str, object]]) -> dict[str, Dataset]:
    from datasets import Dataset

    return {name: Dataset.from_list(list(items)) for name, items in rows.items()}


@functools.lru_cache(maxsize=8)
def _held_out(task: str, num_docs: int, blanks: int | None = None) -> dict[str, Dataset]:
    try:
        examples = held_out_set(task, num_docs, blanks=blanks)
    except ValueError as error:
        raise ConfigError(f"limit and offset ask for {num_docs} documents: {error}") from None
    return _splits(test=[{"prompt": e.prompt, "answer": e.answer, "key": e.key} for e in examples])


def _folder(data: str | None, name: str) -> Path:
    if data is None:
        raise ConfigError(
            f"no data folder was named, and {name} is needed; with lm-eval's command line give "
            f'--metadata \'{{"data": "FOLDER"}}\''
        )
    path = Path(data) / name
    if not path.is_dir():
        raise ConfigError(f"data={data!r} has no folder {name}; {HELP}")
    return path


def word_problem(num_docs: int = BUNDLED_SIZE, **_: object) -> dict[str, Dataset]:
    """Return held-out word problems."""
    return _held_out("word_problem", num_docs)


def sudoku(
    num_docs: int = BUNDLED_SIZE, data: str | None = None, **_: object
) -> dict[str, Dataset]:
    """Return held-out puzzles with 8 blanks, or all public ones in prompts with examples."""
    if data is None:
        return _held_out("sudoku", num_docs, blanks=8)
    return _public(releases.sudoku(_folder(data, "sudoku")), shots.sudoku, SUDOKU_HEADER)


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
    pairs = releases.countdown(_folder(data, "countdown"), count)
    return _public(pairs, shots.countdown, COUNTDOWN_HEADER)


def _public(
    pairs: Iterable[tuple[str, str]], prompt_of: Callable[[str], str], header: str
) -> dict[str, Dataset]:
    return _splits(
        test=[
            {"prompt": prompt_of(puzzle), "answer": answer, "key": header + puzzle}
            for puzzle, answer in pairs
        ]
    )


def gsm8k(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return questions and answers of train and test set."""
    folder = _folder(data, "gsm8k")
    return _splits(**{split: releases.gsm8k(folder, split) for split in ("train", "test")})


def gsm8k_test(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return questions and answers of the test set."""
    return _splits(test=releases.gsm8k(_folder(data, "gsm8k"), "test"))


def math500(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return problems, solutions and answers."""
    return _splits(test=releases.math_problems(_folder(data, "math500")))


def humaneval(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return prompts, tests and entry points."""
    return _splits(test=releases.humaneval(_folder(data, "humaneval")))


def mbpp(data: str | None = None, **_: object) -> dict[str, Dataset]:
    """Return problems 11 to 510, and 2, 3 and 4 as examples."""
    problems = releases.mbpp(_folder(data, "mbpp"))
    test = [problems[id_] for id_ in MBPP_TEST if id_ in problems]
    if not test:
        raise ConfigError(
            f"data={data!r}: mbpp has no task_id from {MBPP_TEST[0]} to {MBPP_TEST[-1]}, the test set"
        )
    examples = [problems[id_] | {"is_fewshot": True} for id_ in MBPP_SHOTS if id_ in problems]
    return _splits(test=test, prompt=examples)


def mmlu(data: str | None = None, shots: int = 5, **_: object) -> dict[str, Dataset]:
    """Return all subjects; each question follows `shots` answered ones of its subject."""
    return _splits(test=_mmlu_documents(_folder(data, "mmlu"), int(shots)))


def _mmlu_documents(folder: Path, num_shots: int) -> Iterator[dict[str, object]]:
    questions = releases.mmlu(folder, "test")
    if not questions:
        raise ConfigError(f"data={str(folder.parent)!r} has no mmlu/test/*_test.csv; {HELP}")
    examples: dict[str, list[MmluQuestion]] = {}
    for each in releases.mmlu(folder, "dev") if num_shots else ():
        examples.setdefault(each.subject, []).append(each)
    for each in questions:
        own = examples.get(each.subject, [])
        if len(own) < num_shots:
            raise ConfigError(
                f"num_fewshot={num_shots}: subject {each.subject} has {len(own)} examples"
            )
        about = each.subject.replace("_", " ")
        text = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        text += "".join(f"{_question(shot)} {shot.letter}\n\n" for shot in own[:num_shots])
        yield {"subject": each.subject, "prompt": text + _question(each), "answer": each.answer}


def _question(one: MmluQuestion) -> str:
    pairs = zip(LETTERS, one.choices, strict=True)
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in pairs)
    return f"{one.question.strip()}{choices}\nAnswer:"
