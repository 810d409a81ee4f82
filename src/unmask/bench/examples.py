"""Prompts of a benchmark, and when an answer is right: held-out examples, or rows of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.bench.report import DecodeSetting
from unmask.data.own_metrics import CHOICE, METRICS, PYTHON
from unmask.data.own_rows import GEN_LENGTH, RowDocument, RowTask
from unmask.data.records import SUFFIXES
from unmask.demo.tasks import Example, check, held_out_set
from unmask.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from unmask.engine.outputs import Output


@dataclass(frozen=True)
class Task:
    """A held-out set: default number of positions, and number of blank cells of a Sudoku."""

    gen_length: int
    blanks: int | None = None


TASKS = {"word_problem": Task(64), "sudoku": Task(32, blanks=8), "countdown": Task(32)}
DEFAULT = "word_problem"


@dataclass(frozen=True)
class RowExample:
    """A row of the user's."""

    task: RowTask
    document: RowDocument

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        return self.document.prompt


BenchExample = Example | RowExample


def default_length(setting: DecodeSetting) -> int:
    """Return the default number of positions of an answer."""
    return GEN_LENGTH if setting.is_own else TASKS[setting.task].gen_length


def check_task(setting: DecodeSetting) -> None:
    """Raise ConfigError for an unknown task, settings without effect, and a file without a metric."""
    if not setting.is_own and setting.task not in TASKS:
        names = unknown_name("task", setting.task, TASKS)
        raise ConfigError(f"{names}; a file of your own ends in {', '.join(SUFFIXES)}")
    values = {name: getattr(setting, name) for name in ("prompt", "target", "metric")}
    for name, value in values.items():
        is_used = setting.is_own and (name == "prompt" or setting.prompts is None)
        if value is not None and not is_used:
            raise ConfigError(
                f"--{name} {value!r} has no effect with {_source(setting)}; it is for --task FILE"
            )
    if not setting.is_own:
        return
    if setting.prompts is None and setting.metric is None:
        raise ConfigError(
            f"--task {setting.task} needs --metric, one of {', '.join(m for m in METRICS if m != CHOICE)} "
            f"or {PYTHON}FILE; or give --prompts {setting.task} to compare without right answers"
        )
    if setting.metric == CHOICE:
        raise ConfigError(
            f"--metric {CHOICE} compares likelihoods, which no decoder changes; give letter or exact"
        )
    _rows(setting).check()


def _source(setting: DecodeSetting) -> str:
    return f"--task {setting.task}" if setting.prompts is None else f"--prompts {setting.prompts}"


def _rows(setting: DecodeSetting) -> RowTask:
    path = Path(setting.task if setting.prompts is None else setting.prompts)
    return RowTask(path, setting.prompt, setting.target, setting.metric)


def examples_of(setting: DecodeSetting) -> Sequence[BenchExample]:
    """Return the examples of a setting, at most `limit` of a file.

    Raises ConfigError for a row that cannot be used, and for a bundled task that has fewer.
    """
    if setting.is_own:
        task = _rows(setting)
        return [RowExample(task, each) for each in task.documents()[: setting.limit]]
    try:
        return held_out_set(setting.task, setting.limit, blanks=TASKS[setting.task].blanks)
    except ValueError as error:
        raise ConfigError(f"limit={setting.limit} is too high: {error}") from None


def judge(
    examples: Sequence[BenchExample], outputs: Sequence[Output], reference: Sequence[Output]
) -> tuple[bool, ...]:
    """Return which answers are right: of rows, those with score 1.

    Rows without a metric have no right answers; theirs are compared with those of the reference.
    """
    return tuple(
        _is_right(example, own.text, other.text)
        for example, own, other in zip(examples, outputs, reference, strict=True)
    )


def _is_right(example: BenchExample, text: str, reference: str) -> bool:
    if isinstance(example, Example):
        return check(example, text)
    if example.task.metric is None:
        return text == reference
    return example.task.score(example.document, text) == 1
