"""Answers by likelihood: log-probabilities of continuations under the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.errors import PromptError
from unmask.evals.generation import AnswerTimer, EvalAnswer, too_long_answer
from unmask.evals.settings import EvalSettings
from unmask.evals.token_counts import Counted
from unmask.method import MethodSpec, Source

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

AT_A_TIME = 32
"""Pairs scored together; a run that is killed repeats at most this many."""


@dataclass(frozen=True)
class Pair:
    """A prompt and its continuation; `doc`, `part` and `key` as in `Question`."""

    doc: int
    part: int
    key: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of both."""
        return len(self.prompt_ids) + len(self.answer_ids)


def score_all(
    llm: LLM, pairs: Sequence[Pair], settings: EvalSettings, watch: AnswerTimer, check_greedy: bool
) -> Iterator[EvalAnswer]:
    """Yield the likelihood of each pair; `check_greedy` also decodes each answer greedily.

    Pairs that the context does not hold come first, without a likelihood; the others follow in order. The
    latency of a pair is its share of the time of the pairs that are scored together.
    """
    most = llm.spec.max_length
    for pair in pairs:
        if pair.num_tokens > most:
            yield too_long_answer(pair.doc, pair.part, pair.key, len(pair.prompt_ids))
    pairs = [pair for pair in pairs if pair.num_tokens <= most]
    for start in range(0, len(pairs), AT_A_TIME):
        chunk = pairs[start : start + AT_A_TIME]
        began = time.perf_counter()
        try:
            likelihoods = llm.loglikelihood(
                [list(pair.prompt_ids) for pair in chunk],
                [list(pair.answer_ids) for pair in chunk],
                mc_num=settings.mc_num,
                cfg_scale=settings.method.sampling_params.cfg_scale,
                seed=settings.seed,
                batch_size=settings.batch_size,
                progress=False,
            )
        except PromptError as error:
            raise PromptError(f"documents {chunk[0].doc} to {chunk[-1].doc}: {error}") from None
        assert isinstance(likelihoods, list), "two lists give a list"
        greedy = [is_greedy(llm, pair) if check_greedy else None for pair in chunk]
        seconds = time.perf_counter() - began
        watch.add(seconds)
        decode_s, wall_s = watch.lap()
        for place, (pair, likelihood) in enumerate(zip(chunk, likelihoods, strict=True)):
            yield EvalAnswer(
                doc=pair.doc,
                part=pair.part,
                key=pair.key,
                text="",
                counted=Counted(prompt=len(pair.prompt_ids), response=likelihood.num_tokens),
                num_forwards=likelihood.num_forwards,
                num_queries=likelihood.num_forwards * (len(pair.prompt_ids) + len(pair.answer_ids)),
                num_logit_rows=likelihood.num_forwards * likelihood.num_tokens,
                latency_s=seconds / len(chunk),
                decode_s=decode_s if place == 0 else 0.0,
                wall_s=wall_s if place == 0 else 0.0,
                log_prob=likelihood.log_prob,
                is_greedy=greedy[place],
            )


def is_greedy(llm: LLM, pair: Pair) -> bool:
    """Return True if decoding one token per forward, highest confidence first, yields the answer.

    Source: `suffix_greedy_prediction` of LLaDA's evaluation.
    """
    count = len(pair.answer_ids)
    canvas = llm.prompt_canvas(list(pair.prompt_ids), count)
    method = MethodSpec.parse(Source({"block_length": count, "steps": count}))
    template = llm.requests.template(method, stop_at_eos=False)
    written = llm.run([template(canvas)], 1)[0].canvas
    ids: list[int] = written.tokens[len(pair.prompt_ids) :].tolist()
    return ids == list(pair.answer_ids)
