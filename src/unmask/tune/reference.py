"""Prompts of the user's without right answers: the answers of the decoder's defaults take their place."""

from __future__ import annotations

import dataclasses
import json
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
DEFAULT_PROMPTS = 100


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


def parse_prompts(text: str) -> int | Path:
    """Return the value of `--prompts`: a number of prompts of the task, or a file of prompts.

    Raises ConfigError for a number below 2.
    """
    if not text.strip("+-").isdigit():
        return Path(text).expanduser()
    if int(text) < 2:
        raise ConfigError(f"--prompts {text} must be at least 2, or a file of rows with prompts")
    return int(text)


def num_searched(rows: int, given: int | None, held_out: int, name: str) -> int:
    """Return the number of prompts of the search among the rows of a file.

    Without a given one: 100, or two thirds of fewer than 150 rows if some are held out. Raises ConfigError
    for a file that is too short.
    """
    usual = min(DEFAULT_PROMPTS, rows * 2 // 3 if held_out else rows)
    count = usual if given is None else given
    if count < 2 or count + bool(held_out) > rows:
        need = max(2, count) + bool(held_out)
        raise ConfigError(
            f"{name} has {rows} rows, but {max(2, count)} prompts of the search"
            f"{' and at least one held out' if held_out else ''} need {need}; give fewer "
            f"(--num-prompts), or --held-out 0"
        )
    return count


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
