"""Reading ahead: canvases that a sequence's next forwards are likely to get, computed in the present one.

A decoder that can say what its next edits will probably be (`Decoder.predict`) has the canvases behind
these edits read in the same forward. If an edit comes out as predicted, its canvas has been read already,
and the decoder goes on with that reading; otherwise the reading is dropped. A sequence's trace is that of
decoding without reading ahead, with the same random numbers: they depend on the number of the step. Only
sequences without a cache are read ahead: a predicted canvas must not change stored keys and values. One
with a constraint is not: what the constraint leaves of a predicted edit is not known before the step.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np

from unmask.canvas import Canvas, apply_checked
from unmask.edit_rules import edit_fault
from unmask.engine.model_runner import ForwardInput, ModelRunner
from unmask.engine.sequence import SequenceState
from unmask.errors import DecoderError

MAX_AHEAD = 8
"""Maximum number of canvases that are read ahead of one sequence."""


def may_read_ahead(item: ForwardInput) -> bool:
    """Return whether predicted canvases of a sequence may be read, from what its request is."""
    request = item.sequence.request
    return item.runs_decoder and not request.cache.stores and request.constraint is None


def inputs_ahead(item: ForwardInput, runner: ModelRunner) -> list[ForwardInput]:
    """Return the inputs of the canvases that the decoder predicts, the nearest first.

    Raises DecoderError for a predicted edit that breaks a rule.
    """
    sequence, request = item.sequence, item.sequence.request
    if not may_read_ahead(item):
        return []
    inputs: list[ForwardInput] = []
    canvas, number = sequence.canvas, sequence.num_forwards
    for edit in request.decoder.predict(canvas, sequence.decoder_state)[:MAX_AHEAD]:
        rule = edit_fault(canvas, edit, request.facts.vocab_size)
        if rule is not None:
            raise DecoderError(f"predict: {rule}", request.decoder.name, sequence.num_forwards)
        canvas, number = apply_checked(canvas, edit, number), number + 1
        if edit.is_empty or not canvas.num_open:
            break
        ahead = replace(
            sequence,
            canvas=canvas,
            num_forwards=number,
            num_logit_rows=0,
            ask=None,
            sampler_state=copy(sequence.sampler_state),
        )
        inputs.append(runner.prepare(ahead))
    return inputs


def is_same_forward(item: ForwardInput, ahead: ForwardInput) -> bool:
    """Return whether an input is the one that was read ahead, so that its reading is this one's."""
    return (
        item.runs_decoder
        and item.sequence.num_forwards == ahead.sequence.num_forwards
        and item.sequence.limit == ahead.sequence.limit
        and _is_same_canvas(item.sequence.canvas, ahead.sequence.canvas)
        and item.plan.end == ahead.plan.end
        and np.array_equal(item.plan.queries, ahead.plan.queries)
        and np.array_equal(item.rows, ahead.rows)
        and np.array_equal(item.ask.rows, ahead.ask.rows)
        and np.array_equal(item.ask.shadows, ahead.ask.shadows)
        and item.ask.shadows_attend == ahead.ask.shadows_attend
        and item.ask.stats == ahead.ask.stats
        and item.ask.top_v == ahead.ask.top_v
        and item.ask.from_sampling == ahead.ask.from_sampling
        and item.ask.bias is None
        and ahead.ask.bias is None
        and item.ask.credit is None
        and ahead.ask.credit is None
    )


def _is_same_canvas(canvas: Canvas, other: Canvas) -> bool:
    return (
        np.array_equal(canvas.tokens, other.tokens)
        and np.array_equal(canvas.open, other.open)
        and np.array_equal(canvas.uid, other.uid)
    )


def count_unused(sequence: SequenceState, ahead: ForwardInput, cost: int) -> None:
    """Add the work of a reading that was dropped to the sequence's counters."""
    sequence.num_queries += cost
    sequence.num_logit_rows += ahead.sequence.num_logit_rows
