"""Results of a request: the output and the trace of its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from unmask.canvas import Canvas, Edit, Ints, Reading
from unmask.errors import ConfigError
from unmask.pictures.film import Film, PositionTexts, film_of
from unmask.plain_text import one_line, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FinishReason = Literal["stop", "length"]
MAX_SHOWN = 60
"""Characters of the text in an output's short form."""


class Commit(NamedTuple):
    """One decided position: its index in the canvas at that time, its token, its confidence in [0, 1]."""

    position: int
    token: int
    confidence: float


Alternatives = tuple[tuple[int, float], ...]
"""The likeliest tokens of a position and their probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Step:
    """Changes of one forward.

    `committed` in position order; `replaced` likewise (decided before); `remasked` positions; `inserted`
    `(position, count)` pairs; `deleted` positions; `appended` tokens; `num_queries` positions computed by
    the forward; `notes`: numbers that the decoder chose for it (a controller's block length, threshold...).
    `alternatives`: the likeliest tokens of committed and replaced positions, those that the forward read;
    only with `trace_alternatives`.
    """

    committed: tuple[Commit, ...]
    remasked: tuple[int, ...] = ()
    inserted: tuple[tuple[int, int], ...] = ()
    replaced: tuple[Commit, ...] = ()
    deleted: tuple[int, ...] = ()
    num_queries: int = 0
    appended: tuple[int, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)
    alternatives: Mapping[int, Alternatives] = field(default_factory=dict)


def alternatives_of(edit: Edit, reading: Reading, count: int) -> dict[int, Alternatives]:
    """Return up to `count` likeliest tokens of each position that an edit decides and a forward read.

    Probabilities are those of the model's distribution, over the vocabulary of the request.
    """
    found: dict[int, Alternatives] = {}
    for position in sorted({*edit.commit.tolist(), *edit.replace.tolist()}) if count else ():
        row = int(np.searchsorted(reading.positions, position))
        if row == len(reading.positions) or reading.positions[row] != position:
            continue
        tokens = reading.top_tokens[row, :count].tolist()
        shares = np.exp(reading.top_log_probs[row, :count]).tolist()
        pairs = zip(tokens, shares, strict=True)
        found[position] = tuple((token, share) for token, share in pairs if token >= 0)
    return found


def step_of(
    edit: Edit, num_queries: int, alternatives: Mapping[int, Alternatives] | None = None
) -> Step:
    """Build the trace entry of an edit."""
    commits = zip(edit.commit.tolist(), edit.tokens.tolist(), edit.confidence.tolist(), strict=True)
    committed = tuple(map(Commit._make, commits))
    if edit.only_commits:
        return Step(
            committed,
            num_queries=num_queries,
            notes=dict(edit.notes),
            alternatives=dict(alternatives or {}),
        )
    replaced = zip(edit.replace.tolist(), edit.replace_tokens.tolist(), strict=True)
    return Step(
        committed=committed,
        remasked=tuple(edit.remask.tolist()),
        inserted=edit.insert,
        replaced=tuple(Commit(position, token, 0.0) for position, token in replaced),
        deleted=tuple(edit.delete.tolist()),
        num_queries=num_queries,
        appended=tuple(edit.append.tolist()),
        notes=dict(edit.notes),
        alternatives=dict(alternatives or {}),
    )


def edit_of(step: Step) -> Edit:
    """Return the edit that a trace entry records."""

    def ints(values: object) -> Ints:
        return np.array(values, dtype=np.int64).reshape(-1)

    return Edit(
        commit=ints([item.position for item in step.committed]),
        tokens=ints([item.token for item in step.committed]),
        confidence=np.array([item.confidence for item in step.committed], dtype=np.float64),
        replace=ints([item.position for item in step.replaced]),
        replace_tokens=ints([item.token for item in step.replaced]),
        remask=ints(step.remasked),
        delete=ints(step.deleted),
        insert=step.inserted,
        append=ints(step.appended),
        notes=step.notes,
    )


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a traced decode: the first canvas, the texts of tokens, and the end tokens."""

    canvas: Canvas
    texts: Callable[[], PositionTexts]
    end_ids: frozenset[int]
    title: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Output:
    """A decoded request.

    `text` and `token_ids`: the generated part up to (without) the first end-of-text or end-of-turn token;
    for an infill, `text` is the whole filled text and `token_ids` the filled tokens. `canvas_ids`:
    prompt and the whole generated part. `num_forwards`: forwards of the network (a guided one counts once).
    `num_queries`: positions computed in all of them. `num_logit_rows`: rows of the LM head.
    `finish_reason`: "stop" (an end token) or "length" (the canvas is full). `trace[k]`: what forward k
    changed, only with return_trace. `blanks`: the filled texts of an infill. `cache`: the policy
    and its knobs, with `auto` resolved; `cache_exact`: whether it equals decoding without a cache;
    `cache_bytes`: maximum size of the sequence's part of it. `method`: the decoder and its resolved knobs.
    `num_forced`: forwards in which the scheduler decided because the decoder changed nothing or exceeded
    the maximum number of forwards. `num_wasted`: part of `num_queries` that lay right of the end token.
    `num_cached`: positions whose keys another request had computed (an engine's prefix cache).
    `num_ahead`: steps whose reading came with an earlier forward, so that they took none of their own.
    `num_draft_forwards`, `num_draft_queries`: the part of both counts that a smaller model did.
    `opening`: where the trace begins, for `film`; only with return_trace.

    A notebook shows the text with the decode's figures, and with a trace each token in the color of its
    probability.
    """

    text: str
    token_ids: list[int]
    canvas_ids: list[int]
    prompt_length: int
    num_forwards: int
    num_queries: int
    num_logit_rows: int
    finish_reason: FinishReason
    cache_exact: bool
    cache: str = "none"
    cache_bytes: int = 0
    trace: tuple[Step, ...] | None = None
    blanks: tuple[str, ...] = ()
    method: str = ""
    num_forced: int = 0
    num_wasted: int = 0
    num_cached: int = 0
    num_ahead: int = 0
    num_draft_forwards: int = 0
    num_draft_queries: int = 0
    opening: Opening | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """Return a line with the beginning of the text and the main figures."""
        text = one_line(self.text)
        shown = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
        return f"Output({shown!r}, {self._figures()})"

    def _figures(self) -> str:
        return (
            f"{len(self.token_ids)} tokens, {self.num_forwards} forwards, "
            f"finish={self.finish_reason}, {self.method or 'unknown method'}"
        )

    def film(self) -> Film:
        """Return the frames of the decode. Raises ConfigError for an output without a trace."""
        if self.trace is None or self.opening is None:
            raise ConfigError("this output has no trace; decode with return_trace=True")
        return film_of(
            self.opening.canvas,
            [(edit_of(step), step.num_queries) for step in self.trace],
            self.opening.texts(),
            self.opening.end_ids,
            title=self.opening.title,
            alternatives=[step.alternatives for step in self.trace],
        )

    def save(
        self,
        path: str | Path,
        *,
        columns: int = 80,
        fps: float = 4.0,
        hold_s: float = 2.0,
        font: str | Path | None = None,
    ) -> Path:
        """Write the decode as .gif, .svg or .html and return the path; see `pictures.save.save_film`."""
        return self.film().save(path, columns=columns, fps=fps, hold_s=hold_s, font=font)

    def plot(self) -> Figure:
        """Return a figure of the decode: tokens per forward, and when each position was decided.

        Raises ConfigError for an output without a trace, and DependencyError without matplotlib.
        """
        return self.film().plot()

    def _repr_html_(self) -> str:
        figures = f'<div style="color:#777">{escape(self._figures())}</div>'
        if self.trace is None or self.opening is None:
            return (
                f'<div style="white-space:pre-wrap">{escape(printable(self.text))}</div>{figures}'
            )
        from unmask.pictures.page import still_of

        return still_of(self.film()) + figures

    @property
    def waste(self) -> float:
        """Share of the computed positions that lay right of the end token, in [0, 1]."""
        return self.num_wasted / max(1, self.num_queries)
