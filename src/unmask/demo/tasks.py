"""The demo tasks: drawing examples, the train/held-out split, and exact checks.

An example is held out by a hash of its content, or when it is one of the public
test puzzles, of which only digests are bundled. Training draws skip held-out examples, so
the two sides share nothing, whatever the seeds.
"""

from __future__ import annotations

import functools
import hashlib
import random
from importlib import resources

from unmask.demo import drills, problems, puzzles, sentences
from unmask.demo.example import Example

__all__ = [
    "TASKS",
    "Example",
    "check",
    "digest",
    "held_out_set",
    "is_held_out",
    "sample",
    "training_example",
]

TASKS: tuple[str, ...] = ("word_problem", "sudoku", "countdown", "sentence", "drill")
FINAL_LEVEL = 4
HELD_OUT_SHARE = 32
# Consecutive draws without a new held-out example after which the set counts as exhausted.
PATIENCE = 20_000


def sample(
    task: str,
    rng: random.Random,
    level: int = FINAL_LEVEL,
    *,
    blanks: int | None = None,
    equations: int | None = None,
) -> Example:
    """Draw an example, held out or not.

    Args:
        task: one of ``TASKS``.
        rng: source of all randomness.
        level: curriculum level: 1 (easiest) to 3 (hardest), then 4, the final distribution.
        blanks: exact number of blank cells (sudoku only).
        equations: exact number of equations (word_problem only).
    """
    if level not in (1, 2, 3, 4):
        raise ValueError(f"level must be 1, 2, 3 or 4, not {level}")
    if blanks is not None and task != "sudoku":
        raise ValueError("blanks is an option of sudoku only")
    if equations is not None and (task != "word_problem" or equations not in (1, 2, 3)):
        raise ValueError("equations is an option of word_problem only, 1 to 3")
    if task == "word_problem":
        return problems.word_problem(rng, level, equations)
    if task == "sudoku":
        return puzzles.sudoku(rng, level, blanks)
    if task == "countdown":
        return puzzles.countdown(rng, level)
    if task == "sentence":
        return sentences.sentence(rng, level)
    if task == "drill":
        return drills.drill(rng, level)
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def digest(task: str, key: str) -> bytes:
    """Hash a task and a key to eight bytes."""
    return hashlib.blake2b(f"{task}\n{key}".encode(), digest_size=8).digest()


@functools.cache
def _public_digests() -> frozenset[str]:
    text = resources.files("unmask.demo").joinpath("public_digests.txt").read_text("ascii")
    return frozenset(line for line in text.split("\n") if line and line[0] != "#")


def _is_held_out_key(task: str, key: str) -> bool:
    hashed = digest(task, key)
    return int.from_bytes(hashed, "big") % HELD_OUT_SHARE == 0 or hashed.hex() in _public_digests()


def is_held_out(example: Example) -> bool:
    """Return whether an example is excluded from training; drills never are.

    A text of several sentences is held out when any one of its sentences is.
    """
    if example.task == "drill":
        return False
    if example.task == "sentence":
        parts = sentences.split_sentences(example.key)
        return any(_is_held_out_key(example.task, part) for part in parts)
    return _is_held_out_key(example.task, example.key)


def training_example(task: str, rng: random.Random, level: int = FINAL_LEVEL) -> Example:
    """Draw an example that training may see."""
    while is_held_out(example := sample(task, rng, level)):
        pass
    return example


def held_out_set(
    task: str,
    n: int,
    seed: int = 0,
    *,
    level: int = FINAL_LEVEL,
    blanks: int | None = None,
    equations: int | None = None,
) -> list[Example]:
    """Draw ``n`` held-out examples with distinct keys, the same ones for the same seed."""
    if task == "drill":
        raise ValueError("drills are never held out")
    rng = random.Random(f"{task} {seed}")
    examples: dict[str, Example] = {}
    vain = 0
    while len(examples) < n:
        example = sample(task, rng, level, blanks=blanks, equations=equations)
        if is_held_out(example) and example.key not in examples:
            examples[example.key] = example
            vain = 0
        elif (vain := vain + 1) >= PATIENCE:
            raise ValueError(f"only {len(examples)} distinct held-out examples of {task}, not {n}")
    return list(examples.values())


def check(example: Example, output: str) -> bool:
    """Return whether a model's answer text is right, surrounding white space aside."""
    if example.task == "word_problem":
        return problems.check_word_problem(example, output)
    if example.task == "sudoku":
        return puzzles.check_sudoku(example, output)
    if example.task == "countdown":
        return puzzles.check_countdown(example, output)
    if example.task == "sentence":
        return sentences.check_sentence(output)
    return output.strip() == example.answer
