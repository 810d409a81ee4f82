"""Prompts of the user's without right answers: the answers of the decoder's defaults take their place.

Also how the prompts of a task or of a file are shared between the search and the final comparison.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.data.own_rows import RowDocument, RowTask
from unmask.durable import write_text
from unmask.errors import ConfigError
from unmask.evals.run import Progress, evaluate
from unmask.evals.run_folder import read_all
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

METRIC = "exact"
"""An answer is right if it is that of the defaults, white space at its ends aside."""
ASKED, ANSWERED, FOLDER = "prompts.jsonl", "reference.jsonl", "reference"
DEFAULT_PROMPTS, DEFAULT_HELD_OUT = 100, 200


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """A file of rows with prompts; `prompt`: their template (None: the usual field names)."""

    path: Path
    prompt: str | None = None

    def documents(self) -> list[RowDocument]:
        """Return the rows with their prompts. Raises ConfigError with file and line, as `bench decode`."""
        task = RowTask(self.path, self.prompt)
        task.check()
        return task.documents()


@dataclasses.dataclass(frozen=True)
class Shares:
    """Numbers of prompts: of the search, and of the comparison afterwards (0: none)."""

    searched: int
    held_out: int

    @property
    def total(self) -> int:
        """Number of prompts that are needed."""
        return self.searched + self.held_out


def parse_prompts(given: str | int | Path | None) -> int | Path | None:
    """Return the value of `--prompts`: a number of prompts of the task, a file of prompts, or None.

    Raises ConfigError for a number below 2.
    """
    if given is None or isinstance(given, Path):
        return given
    text = str(given)
    if not text.strip("+-").isdigit():
        return Path(text).expanduser()
    if int(text) < 2:
        raise ConfigError(f"--prompts {text} must be at least 2, or a file of rows with prompts")
    return int(text)


def share_out(rows: int | None, searched: int | None, held_out: int | None, name: str) -> Shares:
    """Return how the prompts are shared; `rows`: their number, None without an end.

    Not given: 100 for the search, or two thirds of fewer than 150 rows if some are held out, and 200 held
    out, or the rows that are left. Raises ConfigError for fewer rows than are asked for, or needed.
    """
    most = DEFAULT_PROMPTS
    if rows is not None and searched is None:
        most = min(most, rows if held_out == 0 else rows * 2 // 3)
    count = most if searched is None else searched
    if rows is None:
        return Shares(count, DEFAULT_HELD_OUT if held_out is None else held_out)
    least = Shares(max(2, count), 1 if held_out is None else held_out)
    if least.total > rows:
        raise ConfigError(
            f"{name} has {rows} rows, but {least.searched} prompts of the search and {least.held_out} held "
            f"out need {least.total}; ask for fewer, or give more rows (held_out=0 holds none out)"
        )
    return Shares(count, min(DEFAULT_HELD_OUT, rows - count) if held_out is None else held_out)


def shared_prompts(
    settings: EvalSettings,
    prompts: int | Path | None,
    num_prompts: int | None,
    held_out: int | None,
) -> tuple[PromptFile | None, Shares]:
    """Return the file of prompts, None for those of the task, and their shares. Raises ConfigError."""
    if isinstance(prompts, Path):
        file = PromptFile(prompts, settings.prompt)
        return file, share_out(len(file.documents()), num_prompts, held_out, str(prompts))
    return None, share_out(num_documents(settings), prompts, held_out, settings.task)


def check_alone(prompts: Path, given: Mapping[str, object], dashes: str = "--") -> None:
    """Raise ConfigError for an option that is about right answers, which a file of prompts has not."""
    for name in ("task", "target", "metric", "shots"):
        value = given.get(name)
        if value is not None:
            raise ConfigError(
                f"{dashes}{name} {value} and {dashes}prompts {prompts} contradict: prompts have no right "
                f"answers; leave {dashes}{name} out, or give the file as {dashes}task"
            )


def num_documents(settings: EvalSettings) -> int | None:
    """Return the number of documents of a task; None for a bundled one, which makes as many as are asked.

    Raises ConfigError for a task that cannot be loaded.
    """
    own = settings.own
    if own is not None and not own.is_yaml:
        return len(own.rows.documents())
    if own is None and settings.data is None:
        return None
    from unmask.evals.scoring import load_task

    return len(load_task(dataclasses.replace(settings, limit=None, offset=0)).docs)


def with_reference(
    llm: LLM, settings: EvalSettings, prompts: PromptFile, count: int, progress: Progress
) -> EvalSettings:
    """Answer the first `count` prompts with the decoder's defaults; return settings that compare with that.

    The answers are `reference.jsonl` in the folder of the settings; a repeated call resumes. Raises
    ConfigError for a prompt that the defaults answer with no text.
    """
    documents = prompts.documents()[:count]
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": document.prompt, "target": "-"} for document in documents]
    asked = dataclasses.replace(
        settings,
        task=_write(folder / ASKED, rows),
        prompt="{{prompt}}",
        target="{{target}}",
        metric=METRIC,
        output=str(folder / FOLDER),
    )
    evaluate(asked, progress, llm)
    answers = {item.answer.doc: item.answer.text for item in read_all(asked.folder).values()}
    for number, (row, document) in enumerate(zip(rows, documents, strict=True)):
        row["target"] = answers[number].strip()
        if not row["target"]:
            raise document.row.error(
                ": the decoder's defaults answer this prompt with no text, which no other answer can be "
                "compared with; leave the row out, or raise --gen-length"
            )
    return dataclasses.replace(asked, task=_write(folder / ANSWERED, rows), output=settings.output)


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    """Write rows as JSON lines, unless the file has them; return its path."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.exists() or path.read_text("utf-8") != text:
        write_text(path, text)
    return str(path)
