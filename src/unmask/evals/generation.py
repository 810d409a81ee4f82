"""Answers to questions with their counts and times, as each is finished.

Every answer is decoded by the engine's one loop; `batch_size` of them share a forward, and a finished
one makes room for the next at once.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unmask.engine.model_runner import ModelRunner
from unmask.errors import PromptError
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import Counted, count

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.engine.sequence import SequenceState as Decoding


@dataclass(frozen=True)
class Question:
    """One prompt of a task: `doc` is its document's place in the task, `part` its place in the document.

    `key`: a hash of all that the answer depends on. `stops`: texts that end the answer.
    """

    doc: int
    part: int
    key: str
    prompt_ids: tuple[int, ...]
    gen_length: int | None
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came out for a question, as a line of samples.jsonl.

    `text` ends at the end token or the first stop. `counted`: the numbers of tokens, each by its
    definition. `latency_s`: from admission to the batch to the last forward. `decode_s` and `wall_s`: time
    of the loop, and of everything, since the answer before it was finished, so that their sums over a
    run's answers are the run's times. `log_prob`, `is_greedy`: of a likelihood. `trace`: see `traces`.
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
    trace: dict[str, Any] | None = None


class _Timed(ModelRunner):
    """Notes when each sequence was admitted."""

    def __init__(self, *args: Any, admitted: dict[int, float], **options: Any) -> None:
        super().__init__(*args, **options)
        self._admitted = admitted

    def admit(self, sequence: Decoding) -> None:
        """Give a sequence its rows, and note the time."""
        self._admitted[sequence.index] = time.perf_counter()
        super().admit(sequence)


class AnswerTimer:
    """Times between answers: of the loop and of everything. Begins with its making."""

    def __init__(self) -> None:
        self._wall, self._decode = time.perf_counter(), 0.0

    def add(self, seconds: float) -> None:
        """Time that the loop took."""
        self._decode += seconds

    def lap(self) -> tuple[float, float]:
        """Loop seconds and wall seconds since the lap before."""
        now = time.perf_counter()
        found = self._decode, now - self._wall
        self._wall, self._decode = now, 0.0
        return found


def decode_all(
    llm: LLM, questions: Sequence[Question], settings: EvalSettings, watch: AnswerTimer
) -> Iterator[Answer]:
    """Decode an answer to each question, as they are finished (not in order when answers share forwards).

    Raises PromptError with the document's number where a prompt does not fit, and ConfigError.
    """
    from unmask.evals.traces import compact

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
    admitted: dict[int, float] = {}
    timed = copy.copy(llm)
    timed.make_runner = functools.partial(_Timed, admitted=admitted)
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
        yield Answer(
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
            latency_s=ended - admitted.pop(sequence.index),
            decode_s=decode_s,
            wall_s=wall_s,
            trace=compact(sequence.request, output) if settings.trace else None,
        )
