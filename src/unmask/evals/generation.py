"""Generation of answers with their token counts and times, each as soon as it is finished.

The engine decodes `batch_size` answers per forward; a finished one is replaced by the next immediately.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unmask.engine.model_runner import ModelRunner
from unmask.errors import PromptError
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import Counted, count
from unmask.evals.traces import AnswerTrace, compact

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.sequence import SequenceState


@dataclass(frozen=True)
class Question:
    """A prompt of a task: number of its document in the task, and of the part in the document.

    `key`: hash of all that the answer depends on. `stops`: texts that end the answer.
    """

    doc: int
    part: int
    key: str
    prompt_ids: tuple[int, ...]
    gen_length: int | None
    stops: tuple[str, ...] = ()


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

    Raises PromptError with the number of the document where a prompt does not fit, and ConfigError.
    """
    template = llm.requests.template(settings.method, seed=settings.seed)
    method = template.method
    requests = []
    for question in questions:
        length = settings.gen_length if method.chooses_length else question.gen_length
        try:
            canvas = llm.requests.canvas(list(question.prompt_ids), method, length)
        except PromptError as error:
            raise PromptError(f"document {question.doc}: {error}") from None
        requests.append(template(canvas))
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
        sequence = event.sequence
        if sequence.finish_reason is None:
            continue
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
            num_logit_rows=output.num_logit_rows,
            num_forced=output.num_forced,
            cache_bytes=output.cache_bytes,
            finish_reason=output.finish_reason,
            latency_s=ended - admitted_at.pop(sequence.index),
            decode_s=decode_s,
            wall_s=wall_s,
            trace=compact(sequence.request, output) if settings.trace else None,
        )
