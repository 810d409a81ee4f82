"""Results of a request: the output and the trace of its forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from unmask.canvas import Edit

FinishReason = Literal["stop", "length"]


class Commit(NamedTuple):
    """One decided position: its index in the canvas at that time, its token, its confidence in [0, 1]."""

    position: int
    token: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Step:
    """Changes of one forward.

    `committed` in position order; `replaced` likewise (decided before); `remasked` positions; `inserted`
    `(position, count)` pairs; `deleted` positions; `appended` tokens; `num_queries` positions computed by
    the forward; `notes`: numbers that the decoder chose for it (a controller's block length, threshold...).
    """

    committed: tuple[Commit, ...]
    remasked: tuple[int, ...] = ()
    inserted: tuple[tuple[int, int], ...] = ()
    replaced: tuple[Commit, ...] = ()
    deleted: tuple[int, ...] = ()
    num_queries: int = 0
    appended: tuple[int, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)


def step_of(edit: Edit, num_queries: int) -> Step:
    """Build the trace entry of an edit."""
    commits = zip(edit.commit.tolist(), edit.tokens.tolist(), edit.confidence.tolist(), strict=True)
    replaced = zip(edit.replace.tolist(), edit.replace_tokens.tolist(), strict=True)
    return Step(
        committed=tuple(Commit(*item) for item in commits),
        remasked=tuple(edit.remask.tolist()),
        inserted=edit.insert,
        replaced=tuple(Commit(position, token, 0.0) for position, token in replaced),
        deleted=tuple(edit.delete.tolist()),
        num_queries=num_queries,
        appended=tuple(edit.append.tolist()),
        notes=dict(edit.notes),
    )


@dataclass(frozen=True, slots=True)
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
    `num_draft_forwards`, `num_draft_queries`: the part of both counts that a smaller model did.
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
    num_draft_forwards: int = 0
    num_draft_queries: int = 0

    @property
    def waste(self) -> float:
        """Share of the computed positions that lay right of the end token, in [0, 1]."""
        return self.num_wasted / max(1, self.num_queries)
