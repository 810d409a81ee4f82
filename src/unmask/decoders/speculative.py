"""Speculative unmasking: a cheap draft of the block, verified by the decoder's regular forward.

Source: our own, speculative sampling for block diffusion; the acceptance test is Fast-dLLM's
(arXiv:2505.22618) with a lower threshold where the draft agrees. A drafter proposes tokens for the open
positions: the continuation of an earlier occurrence of the preceding tokens (`drafter=lookup`), the
proposals of the previous forward (`drafter=previous`), or the predictions of a smaller model
(`drafter=NAME`). A position where the draft equals the model's proposal,
with confidence at least `accept_threshold`, is committed in addition to the commits of the wrapped decoder;
so no forward commits fewer than that decoder would on the same canvas. A smaller model drafts once per
block; its forwards and queries are part of the counts of the output, and told apart there. With `lossless`
the tokens are those of the wrapped decoder alone: its next edits are predicted from the previous forward,
the canvases behind them are read in the same forward, and a reading is used only if the decoder gets there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from unmask.canvas import (
    NO_POSITIONS,
    Ask,
    Bools,
    Canvas,
    Edit,
    Ints,
    ModelFacts,
    Reading,
    apply_checked,
)
from unmask.decoders import AnyDecoder, Wrapper, knob
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Guess:
    """State of the wrapped decoder, and the block's drafted tokens by position identity."""

    inner: object
    facts: ModelFacts
    window_end: int = -1
    draft: dict[int, int] | None = None
    last: Reading | None = None
    last_uids: Ints = field(default_factory=lambda: NO_POSITIONS)


@dataclass(frozen=True)
class Speculative(Wrapper[Guess]):
    """A drafter in front of another decoder, whose forwards verify the drafts."""

    inner: AnyDecoder = knob(
        "threshold", "the wrapped decoder, whose knobs may be given along with these"
    )
    drafter: str = knob(
        "lookup",
        "lookup: repetitions within the text; previous: the previous forward's proposals; otherwise the "
        "name or folder of a smaller model",
    )
    accept_threshold: float = knob(
        0.5,
        "confidence from which a matching draft is accepted, in [0, 1]; 0: always, 1: almost never",
    )
    ngram: int = knob(
        2,
        "drafter=lookup: tokens that must match an earlier passage, at least 1; 1: many drafts, large: "
        "few, but better ones",
    )
    lossless: bool = knob(
        False,
        "true: only drafts of whole canvases that change no token, with drafter=previous and cache=none: "
        "fewer forwards one after another, more queries; false: drafts may change the answer",
    )
    depth: int = knob(
        1,
        "canvases to read ahead with lossless=true, in [1, 8]; 1: few queries, 8: many, seldom all of use",
    )
    compat: bool = knob(False, "reproduce the quirks of the wrapped decoder's reference code")

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.accept_threshold <= 1:
            raise ConfigError(f"accept_threshold={self.accept_threshold} must be between 0 and 1")
        if self.ngram < 1:
            raise ConfigError(f"ngram={self.ngram} must be at least 1")
        if not 1 <= self.depth <= 8:
            raise ConfigError(f"depth={self.depth} must be between 1 and 8")
        if self.lossless and self.drafter != "previous":
            raise ConfigError(
                f"lossless=true predicts edits from the previous forward, not from "
                f"drafter={self.drafter!r}; use drafter=previous"
            )
        if self.lossless and self.inner.core.revises:
            raise ConfigError(
                f"lossless=true has no effect on decoder {self.inner.name}, which revises tokens: what it "
                f"will do does not follow from the open positions; use another inner decoder"
            )
        if self.lossless and self.inner.core.compares_forwards:
            raise ConfigError(
                f"lossless=true has no effect on decoder {self.inner.name}, which compares each forward "
                f"with the one before; use another inner decoder"
            )
        if self.depth != 1 and not self.lossless:
            raise ConfigError(f"depth={self.depth} has no effect without lossless=true")
        if self.drafter != "lookup" and self.ngram != 2:
            raise ConfigError(f"ngram={self.ngram} has no effect with drafter={self.drafter!r}")
        if self.inner.chooses_length:
            raise ConfigError(
                "decoder speculative cannot wrap one that chooses the length, such as daedal; use another"
            )

    @property
    def draft_model(self) -> str | None:
        """Name or folder of the smaller model; None for drafter=lookup and drafter=previous."""
        return None if self.drafter in ("lookup", "previous") else self.drafter

    def check_cache(self, *, stores: bool) -> None:
        """Raise ConfigError for a cache beside `lossless`: what is read ahead must not be stored."""
        if self.lossless and stores:
            raise ConfigError(
                "lossless=true reads canvases ahead only without a cache; use cache=none"
            )
        self.inner.check_cache(stores=stores)

    def start(self, canvas: Canvas, facts: ModelFacts) -> Guess:
        """Return the state before the first draft."""
        if self.draft_model is not None and facts.draft is None:
            raise ConfigError(
                f"drafter={self.drafter!r} was not loaded; use drafter=lookup, or LLM.generate, which "
                f"loads it"
            )
        return Guess(self.inner.start(canvas, facts), facts)

    def ask(self, canvas: Canvas, state: Guess) -> tuple[Ask, Guess]:
        """Ask for the inner decoder's positions; draft tokens for a new block."""
        ask, inner = self.inner.ask(canvas, state.inner)
        state = replace(state, inner=inner)
        if self.drafter == "lookup":
            tokens = lookup(canvas, ask.rows, self.ngram)
        elif self.drafter == "previous":
            if self.lossless or state.last is None:
                return ask, state
            tokens = np.full(len(canvas), -1, dtype=np.int64)
            known = self._remaining(canvas, state)
            tokens[known.positions] = known.tokens
        elif ask.window[1] != state.window_end:
            assert state.facts.draft is not None, "checked at the start"
            tokens = state.facts.draft(canvas).tokens
        else:
            return ask, state
        draft = {
            int(canvas.uid[position]): int(tokens[position])
            for position in np.flatnonzero(tokens >= 0)
        }
        return ask, replace(state, window_end=ask.window[1], draft=draft)

    def step(self, canvas: Canvas, state: Guess, reading: Reading) -> tuple[Edit, Guess]:
        """Return the inner decoder's edit plus every matching draft token."""
        edit, inner = self.inner.step(canvas, state.inner, reading)
        if self.drafter == "previous":
            state = replace(state, last=reading, last_uids=canvas.uid[reading.positions])
            if self.lossless:
                return edit, replace(state, inner=inner)
        draft = state.draft or {}
        masked = reading.undecided(canvas)
        drafted = np.array(
            [draft.get(int(uid), -1) for uid in canvas.uid[masked.positions]], dtype=np.int64
        )
        matches = (drafted == masked.tokens) & (masked.confidence >= self.accept_threshold)
        more = np.flatnonzero(matches & ~np.isin(masked.positions, edit.commit))
        notes = {
            **edit.notes,
            "num_drafted": float((drafted >= 0).sum()),
            "num_accepted": float(len(more)),
        }
        if len(more):
            both = np.flatnonzero(
                np.isin(masked.positions, np.union1d(edit.commit, masked.positions[more]))
            )
            merged = masked.commit(both)
            edit = replace(
                edit, commit=merged.commit, tokens=merged.tokens, confidence=merged.confidence
            )
            edit = self.inner.extend(canvas, state.inner, edit)
        return replace(edit, notes=notes), replace(state, inner=inner)

    def predict(self, canvas: Canvas, state: Guess) -> tuple[Edit, ...]:
        """Return the wrapped decoder's edits if the confidences stay those of the previous forward."""
        if not self.lossless or state.last is None:
            return ()
        edits: list[Edit] = []
        reading = self._remaining(canvas, state)
        while len(reading.positions) and len(edits) < self.depth:
            edit = self.inner.step(canvas, state.inner, reading)[0]
            if edit.is_empty:
                edit = reading.commit(np.argmax(reading.log_odds, keepdims=True))
            commits = Edit(commit=edit.commit, tokens=edit.tokens, confidence=edit.confidence)
            if commits.is_empty:
                break
            edits.append(commits)
            canvas = apply_checked(canvas, commits, 0)
            reading = reading.undecided(canvas)
        return tuple(edits)

    def _remaining(self, canvas: Canvas, state: Guess) -> Reading:
        """Return the previous reading's part for positions that are still open."""
        assert state.last is not None, "called after a forward"
        inside = state.last.positions < len(canvas)
        last, uids = state.last.only(inside), state.last_uids[inside]
        return last.only((canvas.uid[last.positions] == uids) & canvas.open[last.positions])


def lookup(canvas: Canvas, rows: Ints, ngram: int) -> Ints:
    """Return for each run of masks the continuation of the latest earlier match of the tokens before it.

    One token per position of the canvas, -1 where there is no draft. Only decided tokens are matched and
    copied.
    """
    tokens, open_ = canvas.tokens, canvas.open
    draft: Ints = np.full(len(canvas), -1, dtype=np.int64)
    begins = rows[open_[rows] & (rows >= ngram)]
    begins = begins[~open_[begins - 1]]
    if not len(begins):
        return draft
    words = np.lib.stride_tricks.sliding_window_view(tokens, ngram)
    masked = np.lib.stride_tricks.sliding_window_view(open_, ngram)
    known: Bools = np.asarray(~masked.any(axis=1))
    for position in begins.tolist():
        if not known[position - ngram]:
            continue
        same = (words[: position - ngram] == words[position - ngram]).all(axis=1) & known[
            : position - ngram
        ]
        sources = np.flatnonzero(same) + ngram
        sources = sources[~open_[sources]]
        if not len(sources):
            continue
        source = tokens[sources[-1] : position]
        end = np.flatnonzero(open_[sources[-1] : position])
        length = min(int(end[0]) if len(end) else len(source), len(canvas) - position)
        decided = np.flatnonzero(~open_[position : position + length])
        length = int(decided[0]) if len(decided) else length
        draft[position : position + length] = source[:length]
    return draft


DECODER = Speculative
