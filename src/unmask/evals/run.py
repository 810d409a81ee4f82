"""`evaluate`: one run from its settings to its results."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.bench.environment import git_commit, machine, package_versions, peak_memory_bytes
from unmask.errors import ConfigError, DependencyError
from unmask.evals import convergence, metrics
from unmask.evals.catalog import CATALOG
from unmask.evals.generation import Answer, AnswerTimer, Question, decode_all
from unmask.evals.journal import Journal, StoredAnswer, read_all
from unmask.evals.likelihoods import Pair, score_all
from unmask.evals.processes import Processes, processes
from unmask.evals.results import Results
from unmask.evals.run_folder import begin_run, write_scores
from unmask.evals.settings import EvalSettings
from unmask.evals.table import markdown
from unmask.evals.token_counts import uses_chat
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

Progress = Callable[[int, int], None]
"""Told how many answers there are and how many there will be; in rank 0, of its own share."""


def evaluate(
    settings: EvalSettings, progress: Progress | None = None, llm: LLM | None = None
) -> Results:
    """Run a task and fill the run folder (docs/reference/numbers.md says with what).

    A run whose folder has answers goes on: what was answered is neither asked again nor counted twice.
    Started by torchrun or accelerate launch, the processes share the documents; each returns the same
    results. `llm`: the loaded model, where the caller has it. Raises ConfigError, ModelError, PromptError
    and DependencyError (extra `eval`).
    """
    _need_lm_eval()
    group = processes()
    llm = _load(settings, group) if llm is None else llm
    if group.rank == 0:
        begin_run(settings)
    group.wait()
    stored = read_all(settings.folder)
    group.wait()
    session = 1 + max((item.session for item in stored.values()), default=0)
    with Journal(settings.folder, group.rank, session) as journal:
        run = _Run(llm, settings, group, journal, stored, progress)
        scored = _scored(llm, settings, run)
    if scored is not None:
        results = _results(llm, settings, run, scored)
        results.write(settings.folder)
        (settings.folder / "results.md").write_text(markdown(results), encoding="utf-8")
    group.wait()
    return Results.read(settings.folder)


class _ShareIsDone(BaseException):
    """Ends lm-eval in the processes that only answer."""


@dataclass
class _Run:
    """Answers what was not answered yet; what lm-eval's model asks."""

    llm: LLM
    settings: EvalSettings
    group: Processes
    journal: Journal
    stored: dict[str, StoredAnswer]
    progress: Progress | None
    asked: list[StoredAnswer] = field(default_factory=list)
    stops: tuple[str, ...] = ()

    def ask(self, questions: Sequence[Question]) -> Mapping[str, Answer]:
        watch = AnswerTimer()
        self.stops = questions[0].stops

        def work(mine: list[Question]) -> Iterator[Answer]:
            return decode_all(self.llm, mine, self.settings, watch)

        return self._answer(questions, work)

    def ask_pairs(self, pairs: Sequence[Pair]) -> Mapping[str, Answer]:
        watch = AnswerTimer()

        def work(mine: list[Pair]) -> Iterator[Answer]:
            return score_all(self.llm, mine, self.settings, watch, check_greedy=False)

        return self._answer(pairs, work)

    def _answer(
        self, items: Sequence[Any], work: Callable[[list[Any]], Iterator[Answer]]
    ) -> Mapping[str, Answer]:
        keys = [item.key for item in items]
        assert len(set(keys)) == len(keys), "two documents with one key"
        rank, count = self.group.rank, self.group.count
        open_ = [item for item in items if item.key not in self.stored]
        mine = open_[rank::count]
        self._report(len(items) - len(open_), len(items) - len(open_) + len(mine))
        for number, answer in enumerate(work(mine), start=1):
            self.journal.append(answer)
            done = len(items) - len(open_)
            self._report(done + number, done + len(mine))
        self.group.wait()
        if rank > 0:
            raise _ShareIsDone
        self.stored = read_all(self.settings.folder)
        self.asked = [self.stored[key] for key in keys]
        return {key: self.stored[key].answer for key in keys}

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None and self.group.rank == 0:
            self.progress(done, total)


def _need_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise DependencyError(
            "evaluation needs lm_eval, which is not installed; pip install 'unmask[eval]'"
        ) from None


def _load(settings: EvalSettings, group: Processes) -> LLM:
    from unmask.engine.llm import LLM

    device = group.device if settings.device is None else settings.device
    return LLM(settings.model, dtype=settings.dtype, device=device)


@dataclass
class _Scored:
    """lm-eval's samples, and its task."""

    samples: list[dict[str, Any]]
    task: Any


def _scored(llm: LLM, settings: EvalSettings, run: _Run) -> _Scored | None:
    """Ask and judge by lm-eval; None in the processes that only answer."""
    from unmask.evals.lm import UnmaskLM

    with _quiet_lm_eval(), contextlib.suppress(_ShareIsDone):
        # Not simple_evaluate, which also runs a dozen programs to describe the machine.
        from lm_eval.evaluator import evaluate as lm_evaluate
        from lm_eval.tasks import TaskManager

        docs, metadata = _docs(settings)
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
        loaded = manager.load([settings.task])
        task = loaded["tasks"][settings.task]
        docs = _within(docs, len(task.eval_docs), settings)
        if settings.num_fewshot is not None and not CATALOG[settings.task].own_shots:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
        task.set_fewshot_seed(seed=settings.seed)
        found = lm_evaluate(
            lm=UnmaskLM.of(llm, settings, run.ask, run.ask_pairs),
            task_dict=loaded,
            samples={settings.task: docs},
            bootstrap_iters=0,
            apply_chat_template=uses_chat(llm, settings),
            fewshot_as_multiturn=False,
            system_instruction=settings.system_prompt,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
        )
        assert found is not None, "rank 0 gets lm-eval's results"
        return _Scored(found["samples"][settings.task], task)
    return None


TASKS = Path(__file__).parent / "tasks"


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """No log lines of lm-eval below errors, and no bar of its beside ours (it has no switch for that)."""
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


def _docs(settings: EvalSettings) -> tuple[range, dict[str, Any]]:
    """The documents asked for, and what the task's source is told."""
    metadata: dict[str, Any] = {}
    end = None if settings.limit is None else settings.offset + settings.limit
    if settings.data is not None:
        metadata["data"] = settings.data
    elif end is not None:
        metadata["num_docs"] = end
    if CATALOG[settings.task].own_shots and settings.num_fewshot is not None:
        metadata["shots"] = settings.num_fewshot
    return range(settings.offset, end or 0), metadata


def _within(docs: range, count: int, settings: EvalSettings) -> range:
    end = count if settings.limit is None else min(docs.stop, count)
    if settings.offset >= end:
        raise ConfigError(
            f"offset={settings.offset} is past the end: task={settings.task} has {count} documents"
        )
    return range(settings.offset, end)


def _results(llm: LLM, settings: EvalSettings, run: _Run, scored: _Scored) -> Results:
    entry, samples = CATALOG[settings.task], scored.samples
    scores: dict[str, float] = {}
    for metric, filter_name in sorted({(m, s["filter"]) for s in samples for m in s["metrics"]}):
        values = [float(s[metric]) for s in samples if s["filter"] == filter_name]
        found = metrics.accuracy(values)
        scores[f"{metric},{filter_name}"] = found["accuracy"]
        if "accuracy_stderr" in found:
            scores[f"{metric}_stderr,{filter_name}"] = found["accuracy_stderr"]
    chosen = {s["doc_id"]: float(s[entry.metric]) for s in samples if s["filter"] == entry.filter}
    docs = tuple(sorted(chosen))
    right = tuple(chosen[doc] for doc in docs)
    counts = metrics.scoring if entry.choices else metrics.speed
    measured = {"num_docs": float(len(docs))} | metrics.accuracy(right)
    measured |= counts(run.asked, settings.batch_size)
    measured["peak_memory_bytes"] = float(peak_memory_bytes(llm.model.device))
    write_scores(settings.folder, samples)
    method = settings.method.bind(llm.spec.block_size)
    return Results(
        task=settings.task,
        model=llm.name,
        method=method.describe(),
        cache=method.describe_cache(),
        metrics=measured,
        docs=docs,
        right=right,
        settings=settings.as_dict(),
        resolved=resolved(llm, settings, run),
        machine=machine(llm.model.device)
        | {"versions": package_versions(), "attention": "scaled_dot_product_attention"},
        scores=scores,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        commit=git_commit(),
        early=_early(llm, settings, run, scored),
    )


def resolved(llm: LLM, settings: EvalSettings, run: _Run) -> dict[str, Any]:
    """What the settings left open."""
    entry = CATALOG[settings.task]
    return {
        "num_fewshot": entry.num_fewshot if settings.num_fewshot is None else settings.num_fewshot,
        "gen_length": entry.gen_length if settings.gen_length is None else settings.gen_length,
        "chat": uses_chat(llm, settings),
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "device": str(llm.model.device),
        "family": llm.spec.family,
        "method": json.loads(json.dumps(settings.method.bind(llm.spec.block_size).values())),
        "num_sessions": max(item.session for item in run.asked),
        "num_processes": run.group.count,
    }


def _early(llm: LLM, settings: EvalSettings, run: _Run, scored: _Scored) -> tuple[float, ...]:
    """Empty without traces, and where judging would run the model's code at every forward."""
    entry = CATALOG[settings.task]
    if not settings.trace or entry.choices or entry.runs_code:
        return ()
    judge = convergence.judge_of(scored.task, entry.metric, entry.filter)
    listed, seen = [], convergence.ConfidenceMap()
    for item in run.asked:
        answer = item.answer
        assert answer.trace is not None, "every answer of this run has its trace"
        judged = functools.partial(judge, answer.doc)
        listed.append(list(convergence.scores(llm, answer.trace, run.stops, judged, seen)))
    rows = json.dumps(seen.rows())
    (settings.folder / convergence.CONFIDENCE).write_text(rows, encoding="utf-8")
    return convergence.curve(listed)
