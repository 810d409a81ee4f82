"""Judgment of the programs that a run has stored, later or on another machine, without the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval.api.model import LM

from unmask.durable import write_text
from unmask.errors import ConfigError
from unmask.evals.catalog import CATALOG
from unmask.evals.results import Results, markdown
from unmask.evals.run_folder import StoredAnswer, begin_run, read_all, write_scores, writing
from unmask.evals.sandbox import sandbox_name
from unmask.evals.scoring import digest_of, judgment, load_task, score
from unmask.evals.settings import LEAVE, EvalSettings

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class StoredLM(LM):  # type: ignore[misc]
    """A model whose answers are known, by document and part."""

    def __init__(self, texts: Mapping[tuple[int, int], str], first_doc: int) -> None:
        super().__init__()
        self.texts, self.first_doc = texts, first_doc

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the stored texts."""
        return [
            self.texts[self.first_doc + (request.doc_id or 0), request.idx] for request in requests
        ]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: programs are generated."""
        raise NotImplementedError

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Raise NotImplementedError: programs are generated."""
        raise NotImplementedError


def judge(folder: Path, *, may_run_code: bool, data: str | None = None) -> Results:
    """Run the programs of a finished run, and write its results anew; `data`: where its files are now.

    Raises ConfigError without leave or a wall, for a folder of another kind, and for other documents.
    """
    before = Results.read(folder)
    entry = CATALOG.get(before.task)
    if entry is None or not entry.runs_code:
        raise ConfigError(
            f"{str(folder)!r} was judged when it ran: task={before.task} runs no code"
        )
    if not may_run_code:
        raise ConfigError(f"judging {str(folder)!r} runs code that a model wrote; {LEAVE}")
    own = {"output": str(folder), "resume": True, "confirm_run_unsafe_code": True}
    own |= {} if data is None else {"data": data}
    settings = EvalSettings.from_dict({**before.settings, **own})
    wall = sandbox_name()
    part = load_task(settings)
    if digest_of(part) != before.resolved.get("documents"):
        raise ConfigError(
            f"the documents of task={before.task} in data={settings.data!r} are not those of "
            f"{str(folder)!r}; give the folder of the files that it answered: dataset.path=FOLDER"
        )
    with begin_run(dataclasses.replace(settings, data=str(before.settings["data"]))):
        answers = _answers(folder, before)
        texts = {(item.answer.doc, item.answer.part): item.answer.text for item in answers}
        too_long = {item.answer.doc for item in answers if item.answer.is_too_long}
        scored = score(StoredLM(texts, settings.offset), settings, part, is_chat=False)
        verdict = judgment(settings, scored, too_long)
        results = dataclasses.replace(
            before,
            metrics=before.metrics | verdict.accuracy,
            right=verdict.right,
            scores=verdict.scores,
            settings={**before.settings, "confirm_run_unsafe_code": True},
            resolved={**before.resolved, "sandbox": wall},
        )
        with writing(folder):
            write_scores(folder, scored.samples, scored.task.doc_to_text)
            results.write(folder)
            write_text(folder / "results.md", markdown(results))
    return results


def _answers(folder: Path, results: Results) -> list[StoredAnswer]:
    """Return the stored answers of the documents of a run. Raises ConfigError if one is missing."""
    docs = set(results.docs)
    answers = [item for item in read_all(folder).values() if item.answer.doc in docs]
    missing = sorted(docs - {item.answer.doc for item in answers})
    if missing:
        raise ConfigError(
            f"{str(folder)!r} has no answer to {len(missing)} of its documents (the first: {missing[0]}); "
            f"run the evaluation again with resume=true"
        )
    return answers
