"""Constraints while a sequence is decoded: allowed tokens for a forward, and edits that keep them.

The parts of the canvas that a constraint holds for are the whole answer, with its given tokens, or each
blank of an infill. Allowed tokens are marginal: two positions may each allow a token and not both together.
So the commits and replacements of an edit are checked one after another, and what would leave no text of
the language is left open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unmask.canvas import NO_POSITIONS, Allowed, Canvas, Edit, Ints, Reading, apply_checked
from unmask.engine.request import Request
from unmask.errors import GrammarError
from unmask.grammar.reach import OPEN, Reach


@dataclass(frozen=True, slots=True)
class Part:
    """Positions `[start, end)` that must hold a text of the language; `extra` may be appended later."""

    start: int
    end: int
    extra: int = 0


def parts_of(request: Request, canvas: Canvas, limit: int | None) -> Iterator[Part]:
    """Yield the parts of a canvas that the request's constraint holds for.

    Positions from `limit` on (None: no limit) are padding behind an end token.
    """
    if canvas.infilling:
        edges = np.flatnonzero(np.diff(np.concatenate(([True], canvas.fixed, [True])).astype(int)))
        for start, end in edges.reshape(-1, 2).tolist():
            yield Part(start, end)
        return
    end, extra = len(canvas), 0
    if request.decoder.whole_blocks:
        end = min(end, len(request.canvas))  # the surplus is no part of the answer
    if request.decoder.grows:
        extra = max(0, request.max_positions - end)
    if limit is not None:
        end, extra = min(end, limit), 0
    yield Part(canvas.prompt_length, end, extra)


def reaches(request: Request, canvas: Canvas, limit: int | None = None) -> list[tuple[Part, Reach]]:
    """Return the parts of a canvas with the states around their positions; none without a constraint."""
    if request.constraint is None:
        return []
    tokens = np.where(canvas.open, OPEN, canvas.tokens)
    return [
        (part, Reach(request.constraint, tokens[part.start : part.end].tolist(), part.extra))
        for part in parts_of(request, canvas, limit)
    ]


def check_possible(request: Request, canvas: Canvas) -> None:
    """Raise GrammarError if no answer on the first canvas can meet the request's constraint."""
    for part, reach in reaches(request, canvas):
        if reach.is_possible:
            continue
        automaton = reach.automaton
        size = part.end + part.extra - part.start
        least = automaton.num_needed(automaton.start, automaton.num_states)
        assert least is not None, "a language without a text is refused when it is compiled"
        where = "this blank" if canvas.infilling else "the answer"
        if least > size:
            raise GrammarError(
                f"the constraint needs at least {least} positions, but {where} has {size}; use "
                f"{least} or more"
            ).about("gen_length")
        if not canvas.open[part.start : part.end].all():
            raise GrammarError(
                f"the given tokens of {where} (pinned or in constraints) contradict the constraint on its "
                f"{size} positions; leave one of them out, or change the length"
            ).about("constraint")
        raise GrammarError(
            f"no text of the constraint fills exactly {size} positions, and the model has no end token to "
            f"fill the rest; the shortest has {least}: change the length of {where}"
        ).about("gen_length")


def fit_draft(request: Request) -> Request:
    """Return the request with those tokens of its draft left open that the constraint does not allow.

    They are kept from left to right, as long as a text of the constraint agrees with those kept so far and
    with all pinned ones. Those left open count as edits. Raises GrammarError for more than `max_edits`.
    """
    canvas, drafted = request.canvas, np.flatnonzero(request.canvas.drafted)
    if request.constraint is None or not len(drafted):
        return request
    bare = apply_checked(canvas, Edit(remask=drafted), -1)
    parts = reaches(replace(request, canvas=bare), bare)
    if not all(reach.is_possible for _, reach in parts):
        return replace(request, canvas=bare)  # `check_possible` refuses it
    wrong = [position for position in drafted.tolist() if not _put(parts, canvas, position)]
    if request.max_edits is None:
        fitted = None
    elif len(wrong) > request.max_edits:
        raise GrammarError(
            f"the draft breaks the constraint at {len(wrong)} positions, but max_edits="
            f"{request.max_edits}; use {len(wrong)} or more, or another draft"
        ).about("max_edits")
    else:
        fitted = request.max_edits - len(wrong)
    opened = apply_checked(canvas, Edit(remask=np.array(wrong, dtype=np.int64)), -1)
    return replace(request, canvas=opened, max_edits=fitted)


def _put(parts: list[tuple[Part, Reach]], canvas: Canvas, position: int) -> bool:
    """Decide a position by the canvas's token if its part allows it; return whether it does."""
    token = int(canvas.tokens[position])
    inside = [(part, reach) for part, reach in parts if part.start <= position < part.end]
    return all(reach.put(position - part.start, token) for part, reach in inside)


def allowed_tokens(
    request: Request, canvas: Canvas, limit: int | None, positions: Ints
) -> Allowed | None:
    """Return the tokens that the request's constraint allows at these positions; None without one."""
    automaton = request.constraint
    if automaton is None or not len(positions):
        return None
    sets = np.ones((len(positions), automaton.num_classes), dtype=np.bool_)
    for part, reach in reaches(request, canvas, limit):
        inside = np.flatnonzero((positions >= part.start) & (positions < part.end))
        for row, position in zip(inside.tolist(), positions[inside].tolist(), strict=True):
            sets[row] = reach.allowed(position - part.start)
    return Allowed(positions, sets, automaton.classes)


def restrict(
    request: Request, canvas: Canvas, limit: int | None, edit: Edit, reading: Reading
) -> Edit:
    """Return the part of an edit after which the request's constraint can still be met.

    Commits, then replacements, are checked in the order of the reading's confidence, ties to the lowest
    position. If one is left out, or if the constraint cannot be met otherwise, positions are neither
    inserted nor deleted nor appended. Where the canvas is full, may grow and does not end a text of the
    language yet, it grows by the least number of positions that the text needs.
    """
    if request.constraint is None or edit.is_empty:
        return edit
    released = Edit(remask=edit.remask[~canvas.open[edit.remask]])
    opened = apply_checked(canvas, released, 0)
    parts = reaches(request, opened, limit)
    commit = _permitted(parts, reading, edit.commit, edit.tokens)
    exchange = _permitted(parts, reading, edit.replace, edit.replace_tokens)
    kept = replace(
        edit,
        commit=edit.commit[commit],
        tokens=edit.tokens[commit],
        confidence=edit.confidence[commit],
        replace=edit.replace[exchange],
        replace_tokens=edit.replace_tokens[exchange],
    )
    is_whole = bool(commit.all() and exchange.all())
    is_structural = bool(edit.insert or len(edit.delete) or len(edit.append))
    if is_structural and not (is_whole and _is_possible(request, canvas, limit, kept)):
        kept = replace(kept, insert=(), delete=NO_POSITIONS, append=NO_POSITIONS)
    return _grown(request, canvas, kept) if request.decoder.grows and not kept.insert else kept


def _permitted(
    parts: list[tuple[Part, Reach]], reading: Reading, positions: Ints, tokens: Ints
) -> np.ndarray:
    """Return a flag per token to write, `(n,)`: it is allowed, together with those before it.

    The states of the parts are updated.
    """
    flags = np.ones(len(positions), dtype=np.bool_)
    if not len(positions):
        return flags
    at = np.searchsorted(reading.positions, positions).clip(max=len(reading.positions) - 1)
    is_read = reading.positions[at] == positions
    odds = np.where(is_read, reading.log_odds[at], -np.inf)
    for index in np.argsort(-odds, kind="stable").tolist():
        position, token = int(positions[index]), int(tokens[index])
        for part, reach in parts:
            if part.start <= position < part.end:
                flags[index] = reach.put(position - part.start, token)
    return flags


def _is_possible(request: Request, canvas: Canvas, limit: int | None, edit: Edit) -> bool:
    """Return whether the constraint can be met after an edit."""
    after = apply_checked(canvas, edit, 0)
    return all(reach.is_possible for _, reach in reaches(request, after, limit))


def _grown(request: Request, canvas: Canvas, edit: Edit) -> Edit:
    """Return the edit with positions for the rest of the text, if it fills the canvas too early."""
    after = apply_checked(canvas, edit, 0)
    if after.num_open:
        return edit
    num_missing = sum(reach.num_missing or 0 for _, reach in reaches(request, after))
    return replace(edit, insert=((len(canvas), num_missing),)) if num_missing else edit
