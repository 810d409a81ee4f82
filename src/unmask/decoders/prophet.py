"""Prophet: commit all open positions at once when the answer has converged.

Source: arXiv:2508.19982, Algorithm 1. In every forward of the wrapped decoder, the gap between the two
likeliest tokens, averaged over the answer's positions, is compared with a threshold that falls with
progress. Once it is reached, every open position of the canvas is committed. Differs: any decoder may be
wrapped; where a cache does not compute the whole canvas, this commit takes one more forward; without
`answer_start` the mean is over all open positions that do not propose an end token (the reference then
never exits early).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from unmask.canvas import Ask, Canvas, Edit, Ints, ModelFacts, Reading, Stat
from unmask.decoders import AnyDecoder, Wrapper, knob
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Watch:
    """State of the wrapped decoder, the positions that it reads, progress, and a flag for the exit."""

    inner: object
    facts: ModelFacts
    ends: tuple[int, ...] = ()
    num_forwards: int = 0
    asked: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    is_all_in: bool = False


@dataclass(frozen=True)
class Prophet(Wrapper[Watch]):
    """Early exit on the gap between the two likeliest tokens."""

    inner: AnyDecoder = knob(
        "vanilla", "the wrapped decoder, whose knobs may be given along with these"
    )
    answer_start: int | None = knob(
        None,
        "first position of the answer, counted from the prompt's end, at least 0; 0: the generated "
        "part's first; "
        "default: all open positions count, except those that propose an end token",
    )
    answer_length: int = knob(
        5,
        "number of the answer's positions, at least 1; 1: the first one alone, large: up to the canvas's "
        "end",
    )
    gap: Literal["logits", "probability"] = knob(
        "logits",
        "difference of the two largest logits (published) or of the two largest probabilities",
    )
    gap_thresholds: tuple[float, ...] = knob(
        (7.5, 5.0, 2.5),
        "mean gap from which everything is committed, in the first, second and last third of the "
        "schedule; 0: at once, large: never",
    )
    compat: bool = knob(False, "reproduce the quirks of the wrapped decoder's reference code")

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.answer_start is not None and self.answer_start < 0:
            raise ConfigError(f"answer_start={self.answer_start} must be at least 0")
        if self.answer_length < 1:
            raise ConfigError(f"answer_length={self.answer_length} must be at least 1")
        if self.answer_start is None and self.answer_length != 5:
            raise ConfigError(
                f"answer_length={self.answer_length} has no effect without answer_start"
            )
        if len(self.gap_thresholds) != 3:
            raise ConfigError(f"gap_thresholds={self.gap_thresholds} must be three numbers")
        if self.gap == "probability" and min(self.gap_thresholds) > 1:
            raise ConfigError(
                f"gap_thresholds={self.gap_thresholds} are never reached by gap=probability, which is at "
                f"most 1; use e.g. gap_thresholds=[0.9,0.8,0.7]"
            )
        if self.inner.grows:
            raise ConfigError(
                "decoder prophet needs a canvas of constant length; use an inner decoder that keeps it"
            )

    def max_forwards(self, canvas: Canvas, facts: ModelFacts) -> int:
        """Return the inner decoder's bound, plus one forward for the exit."""
        return 1 + self.inner.max_forwards(canvas, facts)

    def num_settled(self, canvas: Canvas, state: Watch) -> int:
        """Return the inner decoder's number of settled positions; all once everything is committed."""
        if state.is_all_in and canvas.num_open == 0:
            return len(canvas)
        return super().num_settled(canvas, state)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Watch:
        """Start the inner decoder; check that the answer lies in the canvas."""
        if not len(self.span(canvas)):
            raise ConfigError(
                f"answer_start={self.answer_start} is beyond the {len(canvas) - canvas.prompt_length} "
                f"generated positions"
            )
        ends = tuple(sorted(facts.end_ids))
        return Watch(self.inner.start(canvas, facts), facts, ends)

    def span(self, canvas: Canvas) -> Ints:
        """Return the positions of the answer."""
        if self.answer_start is None:
            return np.flatnonzero(~canvas.fixed)
        first = canvas.prompt_length + self.answer_start
        return np.arange(first, min(first + self.answer_length, len(canvas)))

    def ask(self, canvas: Canvas, state: Watch) -> tuple[Ask, Watch]:
        """Ask for the inner decoder's positions, the answer and, where computed, the whole canvas."""
        ask, inner = self.inner.ask(canvas, state.inner)
        span, open_ = self.span(canvas), canvas.open_positions()
        if self.answer_start is None:
            span = span[canvas.open[span]]
        asked = np.union1d(ask.rows, ask.optional)
        rows = open_ if state.is_all_in else np.union1d(ask.rows, span)
        gap: Stat = "gap" if self.gap == "logits" else "margin"
        extended = replace(
            ask,
            rows=rows,
            needed=np.intersect1d(np.union1d(ask.needed, span), rows),
            optional=np.union1d(ask.optional, open_),
            stats=ask.stats | {gap},
        )
        return extended, replace(state, inner=inner, asked=asked)

    def threshold(self, canvas: Canvas, state: Watch) -> float:
        """Return the gap that is required at this progress."""
        planned = self.planned_steps(canvas, state.facts)
        made = self.planned_step(canvas, state)
        if planned is not None:
            progress = ((state.num_forwards if made is None else made) + 1) / planned
        else:
            progress = 1 - canvas.num_open / max(1, int((~canvas.fixed).sum()))
        early, middle, late = self.gap_thresholds
        return early if progress < 0.33 else middle if progress < 0.67 else late

    def step(self, canvas: Canvas, state: Watch, reading: Reading) -> tuple[Edit, Watch]:
        """Commit all open positions, or step the inner decoder."""
        masked = reading.undecided(canvas)
        everything = np.arange(len(masked.positions))
        if state.is_all_in:
            return masked.commit(everything, {"all_in": 1.0}), state
        answer = np.isin(reading.positions, self.span(canvas))
        if self.answer_start is None:
            answer &= canvas.open[reading.positions] & ~np.isin(reading.tokens, state.ends)
        gaps = (
            reading.stats["gap"]
            if self.gap == "logits"
            else 1.0 - np.minimum(np.exp(reading.stats["margin"]), 1.0)
        )
        mean = float(gaps[answer].mean()) if answer.any() else 0.0
        notes = {"gap": mean, "gap_threshold": self.threshold(canvas, state)}
        after = replace(state, num_forwards=state.num_forwards + 1)
        exits = mean >= notes["gap_threshold"]
        if exits and len(masked.positions) == canvas.num_open:
            return masked.commit(everything, notes | {"all_in": 1.0}), replace(
                after, is_all_in=True
            )
        own = reading.only(np.isin(reading.positions, state.asked))
        edit, inner = self.inner.step(canvas, state.inner, own)
        edit = replace(edit, notes={**edit.notes, **notes})
        return edit, replace(after, inner=inner, is_all_in=exits)


DECODER = Prophet
