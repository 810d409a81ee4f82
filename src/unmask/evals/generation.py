"""Generation of answers with their token counts and times, each as soon as it is finished.

The engine decodes `batch_size` answers per forward; a finished one is replaced by the next immediately.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unmask.engine.model_runner import ModelRunner
from unmask.errors import LengthError, PromptError
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import Counted, count
from unmask.evals.traces import AnswerTrace, compact

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.request import Request
    from unmask.engine.sequence import SequenceState

TOO_LONG = "too_long"
"""Finish reason of an answer that was not generated, because the context does not hold it."""


@dataclass(frozen=True)
class Question:
    """A prompt of a task: number of its document in the task, and of the part in the document.

    `key`: hash of all that the answer depends on. `stops`: texts that end the answer. `repeat`: number of
    the sample of this prompt, from 0; its seed is the run's plus `repeat`.
    """

    doc: int
    part: int
    key: str
    prompt_ids: tuple[int, ...]
    gen_length: int | None
    stops: tuple[str, ...] = ()
    repeat: int = 0


@dataclass(frozen=True)
class EvalAnswer:
    """The answer to a question, and a line of samples.jsonl.

    `text` ends before the end token or the first stop. `latency_s`: from admission to the batch to the last
    forward. `decode_s` and `wall_s`: time of the engine, and total time, since the previous answer was
    finished, so that their sums over all answers are the times of the run. `log_prob`, `is_greedy`: for
    answers by likelihood.
    """

    doc: int
    part: int
    key: str
    text: str
    counted: Counted = field(default_factory=Counted)
    num_forwards: int = 0
    num_queries: int = 0
    num_draft_forwards: int = 0
    num_draft_queries: int = 0
    num_wasted: int = 0
    num_logit_rows: int = 0
    num_forced: int = 0
    cache_bytes: int = 0
    finish_reason: str = ""
    latency_s: float = 0.0
    decode_s: float = 0.0
    wall_s: float = 0.0
    log_prob: float | None = None
    is_greedy: bool | None = None
    trace: AnswerTrace | None = None

    @property
    def is_too_long(self) -> bool:
        """True for a prompt that does not fit the context with its answer: a miss, without forwards."""
        return self.finish_reason == TOO_LONG


class _TimedRunner(ModelRunner):
    """Model runner that records the time of admission of each sequence in `admitted_at`."""

    admitted_at: dict[int, float]

    def admit(self, sequence: SequenceState) -> None:
        """Admit a sequence and record the time."""
        self.admitted_at[sequence.index] = time.perf_counter()
        super().admit(sequence)


class AnswerTimer:
    """Timer of the intervals between answers: time of the engine, and total time from construction."""

    def __init__(self) -> None:
        self._wall, self._decode = time.perf_counter(), 0.0

    def add(self, seconds: float) -> None:
        """Add time of the engine."""
        self._decode += seconds

    def lap(self) -> tuple[float, float]:
        """Return the seconds of the engine and in total since the previous lap."""
        now = time.perf_counter()
        lap = self._decode, now - self._wall
        self._wall, self._decode = now, 0.0
        return lap


def decode_all(
    llm: LLM, questions: Sequence[Question], settings: EvalSettings, watch: AnswerTimer
) -> Iterator[EvalAnswer]:
    """Yield the answer to each question when it is finished, out of order if answers share forwards.

    Questions that do not fit the context come first, as answers without text. Raises PromptError with the
    number of the document for any other prompt that cannot be decoded, and ConfigError.
    """
    requests, questions, too_long = _requests(llm, questions, settings)
    for question in too_long:
        yield too_long_answer(question.doc, question.part, question.key, len(question.prompt_ids))
    admitted_at: dict[int, float] = {}
    timed = copy.copy(llm)
    timed.make_runner = type("_TimedRunner", (_TimedRunner,), {"admitted_at": admitted_at})
    events = timed.events(requests, settings.batch_size)
    while True:
        began = time.perf_counter()
        event = next(events, None)
        ended = time.perf_counter()
        watch.add(ended - began)
        if event is None:
            return
        if not event.is_last:
            continue
        sequence = event.sequence
        question = questions[sequence.index]
        output = llm.output(sequence, settings.trace)
        text, counted = count(llm, sequence, output, question.stops, settings)
        decode_s, wall_s = watch.lap()
        yield EvalAnswer(
            doc=question.doc,
            part=question.part,
            key=question.key,
            text=text,
            counted=counted,
            num_forwards=output.num_forwards,
            num_queries=output.num_queries,
            num_draft_forwards=output.num_draft_forwards,
            num_draft_queries=output.num_draft_queries,
            num_wasted=output.num_wasted,
            num_logit_rows=output.num_logit_rows,
            num_forced=output.num_forced,
            cache_bytes=output.cache_bytes,
            finish_reason=output.finish_reason,
            latency_s=ended - admitted_at.pop(sequence.index),
            decode_s=decode_s,
            wall_s=wall_s,
            trace=compact(sequence.request, output) if settings.trace else None,
        )


def _requests(
    llm: LLM, questions: Sequence[Question], settings: EvalSettings
) -> tuple[list[Request], list[Question], list[Question]]:
    """Return the requests, their questions, and the questions that do not fit the context."""
    template = llm.requests.template(settings.method, seed=settings.seed)
    method = template.method
    requests, fitting, too_long = [], [], []
    for question in questions:
        length = settings.gen_length if method.chooses_length else question.gen_length
        try:
            canvas = llm.requests.canvas(list(question.prompt_ids), method, length)
        except LengthError:
            too_long.append(question)
        except PromptError as error:
            raise PromptError(f"document {question.doc}: {error}") from None
        else:
            fitting.append(question)
            requests.append(template(canvas, question.repeat))
    return requests, fitting, too_long


def too_long_answer(doc: int, part: int, key: str, num_prompt: int) -> EvalAnswer:
    """Return the answer to a question or pair that the context does not hold."""
    counted = Counted(prompt=num_prompt)
    return EvalAnswer(doc, part, key, "", counted, finish_reason=TOO_LONG, is_greedy=False)


def check_fit(answers: Iterable[EvalAnswer], max_length: int) -> str | None:
    """Return a note on the documents that do not fit the context; None if all do.

    Raises LengthError if none does: no result would be left.
    """
    answers = list(answers)
    docs = {answer.doc for answer in answers}
    too_long = sorted({answer.doc for answer in answers if answer.is_too_long})
    if not too_long:
        return None
    if all(answer.is_too_long for answer in answers):
        first = min(answers, key=lambda answer: answer.doc)
        raise LengthError(
            f"document {first.doc}: the prompt of {first.counted.prompt} tokens and its answer do not fit "
            f"the model's context of {max_length}, nor does any other of {len(docs)} document(s); use a "
            f"lower gen_length or num_fewshot"
        )
    return (
        f"{len(too_long)} of {len(docs)} documents did not fit the model's context of {max_length} with "
        f"their answers, and count as wrong; the first is document {too_long[0]}"
    )
