"""The rules of edits: what a decoder's edit of a canvas may do, checked for one or for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np

from unmask.canvas import NO_POSITIONS, Canvas, Edit, apply_checked
from unmask.errors import DecoderError


def apply(canvas: Canvas, edit: Edit, step: int) -> Canvas:
    """Return the canvas after an edit by forward `step`. Raises DecoderError if the edit breaks a rule."""
    fault = edit_fault(canvas, edit)
    if fault is not None:
        raise DecoderError(fault, forward=step)
    return apply_checked(canvas, edit, step)


def edit_faults(
    canvases: Sequence[Canvas], edits: Sequence[object], vocab_size: int
) -> list[str | None]:
    """Return `edit_fault` of each edit; those that only commit are checked together on one array."""
    plain = {i: edit for i, edit in enumerate(edits) if _only_commits(edit)}
    are_sound = _break_no_rule([canvases[i] for i in plain], list(plain.values()), vocab_size)
    sound = set(plain) if are_sound else set()
    return [
        None if i in sound else edit_fault(canvas, edit, vocab_size)
        for i, (canvas, edit) in enumerate(zip(canvases, edits, strict=True))
    ]


def _only_commits(edit: object) -> TypeGuard[Edit]:
    """Return whether an edit only commits, by arrays of the right types and lengths."""
    if not (isinstance(edit, Edit) and edit.only_commits) or _notes_fault(edit.notes) is not None:
        return False
    arrays = (edit.commit, edit.tokens, edit.confidence)
    if not all(isinstance(values, np.ndarray) for values in arrays):
        return False
    kinds = [values.dtype.kind for values in arrays]
    return (
        kinds == ["i", "i", "f"] and edit.commit.shape == edit.tokens.shape == edit.confidence.shape
    )


def _break_no_rule(canvases: list[Canvas], edits: list[Edit], vocab_size: int) -> bool:
    """Return True if edits that only commit, each of its canvas, break none of the rules."""
    if any(edit.commit.ndim != 1 for edit in edits) or len({c.mask_id for c in canvases}) != 1:
        return False
    counts = [len(edit.commit) for edit in edits]
    sizes = np.array([len(canvas) for canvas in canvases])
    commit = np.concatenate([edit.commit for edit in edits])
    tokens = np.concatenate([edit.tokens for edit in edits])
    confidence = np.concatenate([edit.confidence for edit in edits])
    if ((commit < 0) | (commit >= sizes.repeat(counts))).any():
        return False
    at = commit + (sizes.cumsum() - sizes).repeat(counts)  # in all canvases, one behind the other
    is_open = np.concatenate([canvas.open for canvas in canvases])[at]
    wrong = (at[1:] <= at[:-1]).any() or not is_open.all()
    wrong = wrong or ((tokens == canvases[0].mask_id) | (tokens < 0) | (tokens >= vocab_size)).any()
    return not wrong and bool(((confidence >= 0) & (confidence <= 1)).all())


def edit_fault(canvas: Canvas, edit: object, vocab_size: int | None = None) -> str | None:
    """Return a description of the first rule that an edit of this canvas breaks, or None.

    Token ids must be below `vocab_size`, if it is not None.
    """
    if not isinstance(edit, Edit):
        return f"step returned {type(edit).__name__}; it returns an Edit and the state"
    positions = {
        "commit": edit.commit,
        "replace": edit.replace,
        "remask": edit.remask,
        "delete": edit.delete,
    }
    for name, values in positions.items():
        if values is NO_POSITIONS:  # most edits leave most fields at their defaults
            continue
        fault = positions_fault(f"Edit.{name}", values, len(canvas))
        if fault is None and name != "commit" and len(values) and canvas.fixed[values].any():
            first = values[canvas.fixed[values]][0]
            fault = f"Edit.{name} has position {first}, which is fixed; edit other positions only"
        if fault is not None:
            return fault
    if len(edit.commit) and not canvas.open[edit.commit].all():
        first = edit.commit[~canvas.open[edit.commit]][0]
        return f"Edit.commit has position {first}, which is decided; commit open positions only"
    for name in ("replace", "remask"):
        values = positions[name]
        if not len(values):
            continue
        undecided = canvas.open[values] & ~np.isin(values, edit.commit)
        if undecided.any():
            return f"Edit.{name} has position {values[undecided][0]}, which is undecided"
    return (
        tokens_fault("Edit.tokens", edit.tokens, canvas.mask_id, vocab_size, len(edit.commit))
        or tokens_fault(
            "Edit.replace_tokens",
            edit.replace_tokens,
            canvas.mask_id,
            vocab_size,
            len(edit.replace),
        )
        or tokens_fault("Edit.append", edit.append, canvas.mask_id, vocab_size)
        or _confidence_fault(edit)
        or _insert_fault(canvas, edit.insert)
        or _notes_fault(edit.notes)
    )


def positions_fault(name: str, values: object, size: int) -> str | None:
    """Return the fault of positions in a canvas of `size`, or None for ascending, unique integers."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "i":
        return f"{name} is {_type_of(values)}; use an array of int64 with one dimension"
    if not len(values):
        return None
    if np.count_nonzero(values[1:] <= values[:-1]):
        return f"{name}={values.tolist()[:20]} must ascend, without duplicates"
    if values[0] < 0 or values[-1] >= size:
        outside = values[0] if values[0] < 0 else values[-1]
        return f"{name} has position {outside}; the canvas has {size} positions, 0 to {size - 1}"
    return None


def tokens_fault(
    name: str, values: object, mask_id: int, vocab_size: int | None, count: int | None = None
) -> str | None:
    """Return the fault of token ids to write, or None; there must be `count`, if it is not None."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "i":
        return f"{name} is {_type_of(values)}; use an array of int64 with one dimension"
    if count is not None and len(values) != count:
        return f"{name} has {len(values)} tokens for {count} positions; give one per position"
    if not len(values):
        return None
    if (values == mask_id).any():
        return f"{name} has the mask id {mask_id}; use remask to open a position again"
    if values.min() < 0 or (vocab_size is not None and values.max() >= vocab_size):
        outside = values.min() if values.min() < 0 else values.max()
        return f"{name} has id {outside}; the vocabulary has the ids 0 to {(vocab_size or 0) - 1}"
    return None


def _confidence_fault(edit: Edit) -> str | None:
    values: object = edit.confidence
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind != "f":
        return f"Edit.confidence is {_type_of(values)}; use an array of float64 with one dimension"
    if len(values) != len(edit.commit):
        return f"Edit.confidence has {len(values)} numbers for {len(edit.commit)} commits"
    inside = (values >= 0) & (values <= 1)
    if np.count_nonzero(inside) < len(values):
        return f"Edit.confidence has {values[~inside][0]}; confidences lie in [0, 1]"
    return None


def _insert_fault(canvas: Canvas, insert: object) -> str | None:
    if not insert:
        return None if insert == () else f"Edit.insert is {insert!r}; use a tuple of pairs"
    if not isinstance(insert, tuple) or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, Integral) for n in pair)
        for pair in insert
    ):
        return f"Edit.insert={insert!r} must hold pairs (position, count) of whole numbers"
    positions = [position for position, _ in insert]
    if len(set(positions)) < len(positions):
        return f"Edit.insert={insert!r} has two insertions before one position; add their counts"
    if not canvas.prompt_length <= min(positions) <= max(positions) <= len(canvas):
        return (
            f"Edit.insert={insert!r} must lie between the prompt's end {canvas.prompt_length} and the "
            f"canvas's end {len(canvas)}"
        )
    if min(count for _, count in insert) < 1:
        return f"Edit.insert={insert!r} must insert at least one position each time"
    return None


def _notes_fault(notes: object) -> str | None:
    if isinstance(notes, dict) and not notes:
        return None
    numbers = isinstance(notes, Mapping) and all(
        isinstance(key, str) and isinstance(value, Real) for key, value in notes.items()
    )
    return None if numbers else f"Edit.notes={notes!r} must map names to numbers"


def _type_of(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with {value.ndim} dimensions"
    return f"a {type(value).__name__}"
