"""Scoring of answers by lm-eval: the task with its documents, and the scores of a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import ConfigError, UnmaskError, cut_text
from unmask.evals import metrics
from unmask.evals.own_task import check_metric, is_mean
from unmask.evals.run_folder import Sample, metric_of, set_misses
from unmask.evals.settings import EvalSettings

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class TaskPart:
    """A task as lm-eval has loaded it, and the range of the documents to answer."""

    loaded: dict[str, Any]
    task: ConfigurableTask
    docs: range


@dataclass(frozen=True)
class Scored:
    """The samples of lm-eval, its task, and its scores of the whole set by "metric,filter"."""

    samples: list[Sample]
    task: ConfigurableTask
    totals: dict[str, Any]


@dataclass(frozen=True)
class Judgment:
    """Scores of a run, as `Results` has them; empty where nothing was judged."""

    right: tuple[float, ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def load_task(settings: EvalSettings) -> TaskPart:
    """Return the task and its documents. Raises ConfigError for shots or a part that it does not have."""
    with _quiet_lm_eval():
        from lm_eval.tasks import TaskManager

        docs, metadata = _docs(settings)
        if settings.own is None:
            manager = TaskManager(
                include_path=str(TASKS), include_defaults=False, metadata=metadata
            )
            loaded = manager.load([settings.task])
        else:
            loaded = _load_own(TaskManager(include_defaults=False, metadata=metadata), settings)
        task = loaded["tasks"][settings.task_name]
        docs = _clip(docs, len(task.eval_docs), settings)
        if settings.num_fewshot is not None and not settings.entry.own_shots:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        task.set_fewshot_seed(seed=settings.seed)
        _check_shots(task, settings)
        return TaskPart(loaded, task, docs)


def _load_own(manager: TaskManager, settings: EvalSettings) -> dict[str, Any]:
    """Load a task of the user's. Raises ConfigError for whatever goes wrong in the code of its file."""
    assert settings.own is not None, "the caller has looked"
    spec = settings.own.spec(settings.num_fewshot)
    try:
        loaded: dict[str, Any] = manager.load([spec])
        task = loaded["tasks"][settings.task_name]
        task.eval_docs  # noqa: B018 - reads the documents
    except UnmaskError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"task={settings.task} cannot be loaded by lm-eval ({type(error).__name__}: "
            f"{cut_text(reason, 300)}); correct the file"
        ) from error
    check_metric(task, settings.entry, settings.task)
    return loaded


def score(lm: LM, settings: EvalSettings, part: TaskPart, *, is_chat: bool) -> Scored:
    """Ask a model for the answers, and score them.

    lm-eval is allowed code that answers contain, which runs after the last answer: `lm` of a run without
    leave does not return then.
    """
    with _quiet_lm_eval():
        # Not simple_evaluate, which also runs a dozen programs to describe the machine.
        from lm_eval.evaluator import evaluate as lm_evaluate

        evaluated = lm_evaluate(
            lm=lm,
            task_dict=part.loaded,
            samples={settings.task_name: part.docs},
            bootstrap_iters=0,
            apply_chat_template=is_chat,
            fewshot_as_multiturn=False,
            system_instruction=settings.system_prompt,
            confirm_run_unsafe_code=True,
        )
    assert evaluated is not None, "rank 0 gets lm-eval's results"
    name = settings.task_name
    return Scored(evaluated["samples"][name], part.task, evaluated["results"][name])


def judgment(settings: EvalSettings, scored: Scored, too_long: Collection[int]) -> Judgment:
    """Return the scores of samples; documents that the context does not hold are set to misses.

    A metric of which a document has no score, such as BLEU, has lm-eval's for the whole set.
    """
    samples = scored.samples
    entry = settings.entry
    for sample in samples:
        if sample["doc_id"] in too_long:  # whatever its judge makes of an empty answer
            set_misses(sample)
    scores: dict[str, float] = {}
    for metric, filter_name in sorted({(m, s["filter"]) for s in samples for m in s["metrics"]}):
        name = f"{metric},{filter_name}"
        if settings.own is not None and not is_mean(scored.task, metric):
            if isinstance(scored.totals.get(name), (int, float)):
                scores[name] = float(scored.totals[name])
            continue
        values = [metric_of(s, metric) for s in samples if s["filter"] == filter_name]
        mean = metrics.accuracy(values)
        scores[f"{metric},{filter_name}"] = mean["accuracy"]
        if "accuracy_stderr" in mean:
            scores[f"{metric}_stderr,{filter_name}"] = mean["accuracy_stderr"]
    score_of = {
        s["doc_id"]: metric_of(s, entry.metric) for s in samples if s["filter"] == entry.filter
    }
    right = tuple(score_of[doc] for doc in sorted(score_of))
    return Judgment(right, metrics.accuracy(right), scores)


def digest_of(part: TaskPart) -> str:
    """Return a hash of the documents, by which a later judge knows that its files are the same."""
    documents = [part.task.eval_docs[number] for number in part.docs]
    text = json.dumps(documents, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Suppress lm-eval's log lines below errors and its progress bar, which has no option."""
    from lm_eval.api import task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bar, task.tqdm = task.tqdm, lambda items, **_: items
    try:
        yield
    finally:
        task.tqdm = bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _docs(settings: EvalSettings) -> tuple[range, dict[str, str | int]]:
    """Return the range of documents, and the metadata for the source of the task."""
    metadata: dict[str, str | int] = {}
    end = None if settings.limit is None else settings.offset + settings.limit
    if settings.data is not None:
        metadata["data"] = settings.data
    elif end is not None and settings.own is None:
        metadata["num_docs"] = end
    if settings.entry.own_shots and settings.num_fewshot is not None:
        metadata["shots"] = settings.num_fewshot
    return range(settings.offset, end or 0), metadata


def _check_shots(task: ConfigurableTask, settings: EvalSettings) -> None:
    """Raise ConfigError for more examples than the task has."""
    count = task.config.num_fewshot or 0
    examples = task.fewshot_docs() if count else ()
    if examples is None:
        raise ConfigError(
            f"num_fewshot={count}: task={settings.task} has no examples (fewshot_split); leave it out"
        )
    there = len(examples)
    if there and settings.own is not None and settings.own.draws_from_itself:
        there -= 1  # a document is no example of itself
    if there < count:
        raise ConfigError(
            f"num_fewshot={count}: task={settings.task} has {there} examples; use at most so many, or data "
            f"with more"
        )


def _clip(docs: range, count: int, settings: EvalSettings) -> range:
    end = count if settings.limit is None else min(docs.stop, count)
    if settings.offset >= end:
        raise ConfigError(
            f"offset={settings.offset} is past the end: task={settings.task} has {count} documents"
        )
    return range(settings.offset, end)
