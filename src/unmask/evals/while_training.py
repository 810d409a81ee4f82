"""Accuracy in tasks of a model that is being trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import ConfigError
from unmask.evals.run import evaluate
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM


def task_scorer(tasks: Sequence[str], limit: int = 50) -> Callable[[LLM], dict[str, float]]:
    """Return a function that measures a model's accuracy in the first `limit` documents of each task.

    The method is that of `unmask eval`. Raises ConfigError for a task that is unknown, needs data files, or
    runs programs of the model.
    """
    settings = [EvalSettings(task=task, limit=limit, batch_size=16) for task in tasks]
    for each in settings:
        if not each.judges:
            raise ConfigError(
                f"task={each.task} runs programs that the model wrote; measure it after the training, with "
                f"unmask eval"
            )

    def score(llm: LLM) -> dict[str, float]:
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
            for each in settings:
                output = str(Path(folder) / str(len(found)))
                results = evaluate(replace(each, output=output), llm=llm)
                found[Path(each.task).stem] = results.metrics["accuracy"]
        return found

    return score
