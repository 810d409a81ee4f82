"""Outputs of ended sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from unmask.caches.registry import describe as describe_cache
from unmask.canvas import Bools, Canvas
from unmask.decoders.registry import describe
from unmask.engine.outputs import Opening, Output
from unmask.engine.sequence import SequenceState
from unmask.pictures.film import PositionTexts


class TextDecoder(Protocol):
    """A function that decodes token ids to text."""

    def __call__(self, ids: list[int], fixed: Bools | None = None) -> str:
        """Return the text without special tokens, except for those where `fixed` is True."""


def output_of(
    sequence: SequenceState,
    text_of: TextDecoder,
    return_trace: bool,
    texts: Callable[[], PositionTexts] | None = None,
    model: str = "",
) -> Output:
    """Return the output of a finished sequence, or the settled part of one that was stopped early.

    With `texts`, a traced output can show itself as a film, under the name of the model.
    """
    assert sequence.finish_reason is not None, "the sequence is not finished"
    canvas = sequence.canvas
    ids = canvas.tokens.tolist()
    start, stop_ids = canvas.prompt_length, sequence.request.stop_ids
    last = sequence.num_settled if canvas.num_open else len(canvas)
    answer = ids[start : max(start, last)]
    end = next((i for i, id_ in enumerate(answer) if id_ in stop_ids), len(answer))
    token_ids, text = answer[:end], text_of(answer[:end])
    blanks: tuple[str, ...] = ()
    if canvas.infilling:
        token_ids = canvas.tokens[~canvas.fixed].tolist()
        text = text_of(ids, canvas.fixed)
        blanks = tuple(_blank_texts(canvas, text_of))
    return Output(
        text=text,
        token_ids=token_ids,
        canvas_ids=ids,
        prompt_length=canvas.prompt_length,
        num_forwards=sequence.all_forwards,
        num_queries=sequence.all_queries,
        num_logit_rows=sequence.num_logit_rows,
        finish_reason=sequence.finish_reason,
        cache=describe_cache(sequence.request.cache),
        cache_exact=sequence.request.cache.exact,
        cache_bytes=sequence.cache_bytes,
        method=describe(sequence.request.decoder),
        num_forced=sequence.num_forced,
        num_wasted=sequence.num_wasted,
        num_cached=sequence.num_cached,
        trace=tuple(sequence.trace) if return_trace else None,
        blanks=blanks,
        num_ahead=sequence.num_ahead,
        num_draft_forwards=sequence.num_draft_forwards,
        num_draft_queries=sequence.num_draft_queries,
        opening=_opening(sequence, texts, model) if return_trace and texts is not None else None,
    )


def _opening(sequence: SequenceState, texts: Callable[[], PositionTexts], model: str) -> Opening:
    request = sequence.request
    names = (model, describe(request.decoder), f"cache {describe_cache(request.cache)}")
    return Opening(
        canvas=request.decoder.first_canvas(request.canvas, request.facts),
        texts=texts,
        end_ids=request.stop_ids,
        title=" · ".join(name for name in names if name),
    )


def _blank_texts(canvas: Canvas, text_of: TextDecoder) -> Iterator[str]:
    run: list[int] = []
    for token, fixed in zip(canvas.tokens.tolist(), canvas.fixed.tolist(), strict=True):
        if not fixed:
            run.append(token)
        elif run:
            yield text_of(run)
            run = []
    if run:
        yield text_of(run)
