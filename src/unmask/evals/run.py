"""Evaluation runs: from settings to results, in one or several processes."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, TypeVar

from unmask.bench.environment import git_commit, machine, package_versions, peak_memory_bytes
from unmask.durable import write_text
from unmask.errors import DependencyError
from unmask.evals import convergence, metrics
from unmask.evals.generation import AnswerTimer, EvalAnswer, Question, check_fit, decode_all
from unmask.evals.likelihoods import Pair, score_all
from unmask.evals.results import Results, markdown
from unmask.evals.run_folder import (
    Journal,
    StoredAnswer,
    begin_run,
    read_all,
    write_scores,
    writing,
)
from unmask.evals.sandbox import sandbox_name
from unmask.evals.scoring import Judgment, Scored, TaskPart, digest_of, judgment, load_task, score
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import uses_chat
from unmask.models.digests import file_digest
from unmask.version import __version__

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

Progress = Callable[[int, int], None]
"""Callback with the number of finished answers and of all answers; in rank 0, for its own share."""
PATIENCE = timedelta(days=30)
"""Maximum wait of one process for the slowest."""
Item = TypeVar("Item", Question, Pair)


@dataclass(frozen=True)
class Processes:
    """Rank and number of the processes of a run; `wait` returns after all of them have called it."""

    rank: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], object] = lambda: None


def processes(device: str | None = None) -> Processes:
    """Return the processes of the launcher, or this one alone. Raises DependencyError without accelerate.

    `device`: that of the settings. The result's is the accelerator of this process, None on a machine
    without, and for `device` cpu.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise DependencyError(
            "several processes need accelerate, which is not installed; pip install 'unmask[eval]'"
        ) from None
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Processes(
        rank=state.process_index,
        count=state.num_processes,
        device=None if on_cpu else str(state.device),
        wait=state.wait_for_everyone,
    )


def evaluate(
    settings: EvalSettings,
    progress: Progress | None = None,
    llm: LLM | None = None,
    *,
    has_curves: bool = True,
) -> Results:
    """Run a task and write the run folder, whose files docs/reference/numbers.md describes.

    Programs are judged with `confirm_run_unsafe_code` only, else stored for `judging.judge`. A run is
    resumed from the answers in its folder, which are neither generated again nor counted twice. Processes
    started by torchrun or accelerate launch share the documents; each returns the same results. `llm`: the
    model, if loaded. `has_curves`: with traces, compute the early answers too, which costs a forward for
    each one of the answers. Raises ConfigError, ModelError, PromptError and DependencyError (extra `eval`).
    """
    _need_lm_eval()
    if settings.entry.runs_code and settings.judges:
        sandbox_name()  # before hours of generation
    if settings.own is not None:
        load_task(settings)  # its mistakes are found before a model is loaded
    group = processes(settings.device)
    llm = _load(settings, group) if llm is None else llm
    with contextlib.ExitStack() as stack:
        if group.rank == 0:
            stack.enter_context(begin_run(settings))
        group.wait()
        return _evaluate(settings, group, llm, progress, has_curves)


def _evaluate(
    settings: EvalSettings,
    group: Processes,
    llm: LLM,
    progress: Progress | None,
    has_curves: bool,
) -> Results:
    """Run a task in a folder that is locked."""
    stored = read_all(settings.folder)
    group.wait()
    session = 1 + max((item.session for item in stored.values()), default=0)
    with Journal(settings.folder, group.rank, session) as journal:
        run = _Run(llm, settings, group, journal, stored, progress, has_curves)
        scored = _scored(llm, settings, run)
    if group.rank == 0:
        results = _results(llm, settings, run, scored)
        with writing(settings.folder):
            results.write(settings.folder)
            write_text(settings.folder / "results.md", markdown(results))
    group.wait()
    return Results.read(settings.folder)


class _ShareIsDone(BaseException):
    """Exit from lm-eval where answers are not judged: after the first process, or without leave."""


@dataclass
class _Run:
    """A run in progress, which generates the answers that are not stored yet."""

    llm: LLM
    settings: EvalSettings
    group: Processes
    journal: Journal
    stored: dict[str, StoredAnswer]
    progress: Progress | None
    has_curves: bool
    answers: list[StoredAnswer] = field(default_factory=list)
    stops: tuple[str, ...] = ()
    digest: str = ""
    part: TaskPart | None = None

    def answer_questions(self, questions: Sequence[Question]) -> Mapping[str, EvalAnswer]:
        watch = AnswerTimer()
        self.stops = questions[0].stops

        def work(share: list[Question]) -> Iterator[EvalAnswer]:
            return decode_all(self.llm, share, self.settings, watch)

        return self._answer(questions, work)

    def answer_pairs(self, pairs: Sequence[Pair]) -> Mapping[str, EvalAnswer]:
        watch = AnswerTimer()

        def work(share: list[Pair]) -> Iterator[EvalAnswer]:
            return score_all(self.llm, share, self.settings, watch, check_greedy=False)

        return self._answer(pairs, work)

    def _answer(
        self, items: Sequence[Item], work: Callable[[list[Item]], Iterator[EvalAnswer]]
    ) -> Mapping[str, EvalAnswer]:
        keys = [item.key for item in items]
        assert len(set(keys)) == len(keys), "two documents with one key"
        pending = [item for item in items if item.key not in self.stored]
        share = pending[self.group.rank :: self.group.count]
        done = len(items) - len(pending)
        self._report(done, done + len(share))
        for number, answer in enumerate(work(share), start=1):
            self.journal.append(answer)
            self._report(done + number, done + len(share))
        self.group.wait()
        self.stored = read_all(self.settings.folder)
        self.answers = [self.stored[key] for key in keys]
        # in every process, so that none waits for one that ended
        check_fit((item.answer for item in self.answers), self.llm.spec.max_length)
        if self.group.rank > 0 or not self.settings.judges:
            raise _ShareIsDone
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


def _scored(llm: LLM, settings: EvalSettings, run: _Run) -> Scored | None:
    """Answer and score the documents with lm-eval; None where the answers are not judged."""
    from unmask.evals.lm import UnmaskLM

    part = load_task(settings)
    run.digest, run.part = digest_of(part), part
    with contextlib.suppress(_ShareIsDone):
        lm = UnmaskLM.of(llm, settings, run.answer_questions, run.answer_pairs)
        return score(lm, settings, part, is_chat=uses_chat(llm, settings))
    return None


def _results(llm: LLM, settings: EvalSettings, run: _Run, scored: Scored | None) -> Results:
    """Return the results; `scored` None: of answers that are not judged."""
    entry = settings.entry
    too_long = {item.answer.doc for item in run.answers if item.answer.is_too_long}
    docs = tuple(sorted({item.answer.doc for item in run.answers}))
    verdict = Judgment() if scored is None else judgment(settings, scored, too_long)
    counts = metrics.scoring if entry.choices else metrics.speed
    measured = {"num_docs": float(len(docs)), "num_too_long": float(len(too_long))}
    measured |= verdict.accuracy
    measured |= counts(run.answers, settings.batch_size)
    measured["peak_memory_bytes"] = float(peak_memory_bytes(llm.model.device))
    if scored is not None:
        with writing(settings.folder):
            write_scores(settings.folder, scored.samples, scored.task.doc_to_text)
    method = settings.method.bind(llm.spec.block_size)
    return Results(
        task=settings.task_name,
        model=llm.name,
        method=method.describe(),
        cache=method.describe_cache(),
        metrics=measured,
        docs=docs,
        right=verdict.right,
        settings=settings.as_dict(),
        resolved=resolved(llm, settings, run),
        machine=machine(llm.model.device)
        | {"versions": package_versions(), "attention": "scaled_dot_product_attention"},
        scores=verdict.scores,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        commit=git_commit(),
        early=() if scored is None else _early(llm, settings, run, scored),
    )


def resolved(llm: LLM, settings: EvalSettings, run: _Run) -> dict[str, object]:
    """Return the values that depend on task, model and machine, for settings that are None."""
    entry = settings.entry
    assert run.part is not None, "the task is loaded"
    num_fewshot = settings.num_fewshot
    if num_fewshot is None:
        own = run.part.task.config.num_fewshot or 0
        num_fewshot = entry.num_fewshot if settings.own is None else own
    return {
        "num_fewshot": num_fewshot,
        "gen_length": entry.gen_length if settings.gen_length is None else settings.gen_length,
        "chat": uses_chat(llm, settings),
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "device": str(llm.model.device),
        "family": llm.spec.family,
        "method": json.loads(json.dumps(settings.method.bind(llm.spec.block_size).values())),
        "num_sessions": max(item.session for item in run.answers),
        "num_processes": run.group.count,
        "documents": run.digest,
        "checkpoint": None if llm.folder is None else llm.origin(),
        "files": {str(path): file_digest(path) for path in settings.files()},
        **({"sandbox": sandbox_name()} if entry.runs_code and settings.judges else {}),
    }


def _early(llm: LLM, settings: EvalSettings, run: _Run, scored: Scored) -> tuple[float, ...]:
    """Return the early answer convergence; empty without traces, and for tasks that run code."""
    entry = settings.entry
    if not settings.trace or not run.has_curves or entry.choices or entry.runs_code:
        return ()
    judge = convergence.judge_of(scored.task, entry.metric, entry.filter)
    curves, confidences = [], convergence.ConfidenceMap()
    for item in run.answers:
        answer = item.answer
        if answer.is_too_long:
            curves.append([0.0])
            continue
        assert answer.trace is not None, "every answer of this run has its trace"
        score = functools.partial(judge, answer.doc)
        scores = convergence.scores(llm, answer.trace, run.stops, score, confidences)
        curves.append(list(scores))
    rows = json.dumps(confidences.rows())
    (settings.folder / convergence.CONFIDENCE).write_text(rows, encoding="utf-8")
    return convergence.curve(curves)
