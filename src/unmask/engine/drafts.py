"""Drafts: requests whose answer begins as a given text, and what a decoder may change of it.

The tokens of a draft are decided positions that a revising decoder may replace or remask; those that are
pinned are fixed, like the prompt. The tokens themselves are those of the request's canvas
(`Canvas.drafted`), so a request only adds the number of them that may be changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TypeAlias, TypeGuard

import numpy as np

from unmask.canvas import (
    NO_POSITIONS,
    Bools,
    Canvas,
    Edit,
    Floats,
    Ints,
    Reading,
    pin,
    places,
)
from unmask.decoders.base.protocol import AnyDecoder
from unmask.engine.prompts import PromptEncoder
from unmask.engine.request import Request
from unmask.errors import ConfigError
from unmask.knobs import shorten, whole

DraftText: TypeAlias = str | Sequence[int]
"""A draft of one answer or blank: a text, or token ids, the mask id for a position that is left open."""
DraftLike: TypeAlias = DraftText | Sequence[DraftText | None] | None
"""One draft, or a list with one (or None) for each prompt, or for each blank of an infill."""
Pins: TypeAlias = Iterable[str | Sequence[int]]
"""Parts of drafts that stay: texts, and ranges [start, end) of characters or, for ids, of positions."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Checked options of a draft; `texts` is one for all prompts, or a list with one for each.

    Make it with `read_draft`. `max_edits`: the most drafted positions that differ from the draft at any
    time; None: no limit.
    """

    texts: str | tuple[int, ...] | list[str | tuple[int, ...] | None]
    pinned: tuple[str | tuple[int, int], ...] = ()
    max_edits: int | None = None

    def per_prompt(self, num_prompts: int) -> list[DraftRequest | None]:
        """Return the draft of each prompt. Raises ConfigError for another number of drafts."""
        if not isinstance(self.texts, list):
            self._check_texts([self.texts])
            return [self] * num_prompts
        if len(self.texts) != num_prompts:
            raise ConfigError(
                f"draft has {len(self.texts)} items for {num_prompts} prompts or blanks; give one "
                f"(or null) for each, or a single draft"
            ).about("draft")
        self._check_texts([text for text in self.texts if text is not None])
        return [None if text is None else replace(self, texts=text) for text in self.texts]

    def _check_texts(self, texts: Sequence[str | tuple[int, ...]]) -> None:
        """Raise ConfigError for a pinned text that no draft contains."""
        for text in self.pinned:
            if isinstance(text, str) and not any(isinstance(t, str) and text in t for t in texts):
                raise ConfigError(
                    f"pinned text {shorten(text)} is not in the draft; pin a text of it, or a range "
                    f"[start, end)"
                ).about("pinned")


def read_draft(
    draft: object, pinned: object = None, max_edits: object = None
) -> DraftRequest | None:
    """Return the options of a draft, None without one. Raises ConfigError."""
    if draft is None:
        for name, value in {"pinned": pinned or None, "max_edits": max_edits}.items():
            if value is not None:
                raise ConfigError(
                    f"{name}={shorten(value)} has no effect without draft; leave it out"
                ).about(name)
        return None
    limit = None if max_edits is None else whole("max_edits", max_edits, 0)
    return DraftRequest(_texts(draft), tuple(_pins(pinned)), limit)


def _texts(draft: object) -> str | tuple[int, ...] | list[str | tuple[int, ...] | None]:
    if isinstance(draft, str) or _is_ids(draft):
        return _text(draft)
    if not _is_list(draft):
        raise ConfigError(
            f"draft={shorten(draft)} must be a text, a list of token ids, or a list of these"
        ).about("draft")
    return [None if each is None else _text(each) for each in draft]


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) > 0


def _is_ids(value: object) -> TypeGuard[Sequence[object]]:
    return _is_list(value) and isinstance(value[0], Integral)


def _text(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return value
    if _is_ids(value):
        return tuple(whole("draft", id_, 0) for id_ in value)
    raise ConfigError(
        f"draft has the item {shorten(value)}; use a text or a list of token ids, neither empty"
    ).about("draft")


def _pins(pinned: object) -> Iterable[str | tuple[int, int]]:
    if pinned is None:
        return
    if isinstance(pinned, str | Mapping) or not isinstance(pinned, Iterable):
        raise ConfigError(f"pinned={shorten(pinned)} must be a list of texts and of ranges").about(
            "pinned"
        )
    for item in pinned:
        if isinstance(item, str) and item:
            yield item
            continue
        if not _is_list(item) or len(item) != 2:
            raise ConfigError(
                f"pinned has {shorten(item)}; use a text of the draft, or a range [start, end)"
            ).about("pinned")
        start, end = (whole("pinned", number, 0) for number in item)
        if start >= end:
            raise ConfigError(
                f"pinned has [{start}, {end}]; the start must be below the end"
            ).about("pinned")
        yield start, end


@dataclass(frozen=True, slots=True)
class DraftTokens:
    """A draft's token ids, the mask id where a position is left open, and the offsets that are pinned."""

    ids: tuple[int, ...]
    pinned: frozenset[int] = frozenset()


def encode_draft(prompts: PromptEncoder, draft: DraftRequest) -> DraftTokens:
    """Return the tokens of a draft of one answer. Raises ConfigError and PromptError.

    A token that has a pinned character is pinned as a whole; of a text that occurs several times, every
    occurrence is.
    """
    text = draft.texts
    assert not isinstance(text, list), "a draft of one answer"
    if isinstance(text, str):
        ids = prompts.encode(text, special=False)
        ranges = [pair for item in draft.pinned for pair in _ranges_of(item, text)]
        size, unit = len(text), "characters"
    else:
        ids, ranges = (
            prompts.prompt_ids(list(text)),
            [r for r in draft.pinned if isinstance(r, tuple)],
        )
        size, unit = len(text), "positions"
    for start, end in ranges:
        if end > size:
            raise ConfigError(
                f"pinned has [{start}, {end}], but the draft has {size} {unit}; use 0 to {size}"
            ).about("pinned")
    if isinstance(text, str) and ranges:
        ranges = _token_ranges(prompts, text, ids, ranges)
    offsets = frozenset(at for start, end in ranges for at in range(start, end))
    hidden = sorted(at for at in offsets if ids[at] == prompts.spec.mask_id)
    if hidden:
        raise ConfigError(
            f"pinned has position {hidden[0]} of the draft, which is the mask and left open; pin tokens"
        ).about("pinned")
    return DraftTokens(tuple(ids), offsets)


def _ranges_of(item: str | tuple[int, int], text: str) -> Iterable[tuple[int, int]]:
    """Yield a range, or the ranges of all occurrences of a text, overlapping ones included."""
    if isinstance(item, tuple):
        yield item
        return
    at = text.find(item)
    while at >= 0:
        yield at, at + len(item)
        at = text.find(item, at + 1)


def _token_ranges(
    prompts: PromptEncoder, text: str, ids: list[int], ranges: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return ranges of characters as ranges of tokens, which include a token with any such character.

    Raises ConfigError for a tokenizer that does not give the text back.
    """
    assert prompts.tokenizer is not None, "texts are tokenized"
    tokenizer = prompts.tokenizer

    def reached(count: int) -> int:
        """Return the number of whole characters of the first `count` tokens."""
        return len(str(tokenizer.decode(ids[:count])).rstrip("\ufffd")) if count else 0

    def first_reaching(length: int) -> int:
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if reached(middle) < length else (low, middle)
        return low

    if str(tokenizer.decode(ids)) != text:
        raise ConfigError(
            "the tokenizer does not keep the draft's text as it is, so that pinned texts and ranges cannot "
            "be found among its tokens; give the draft as token ids"
        ).about("draft")
    found = []
    for start, end in ranges:
        first = first_reaching(start)
        first -= first > 0 and reached(first) > start
        found.append((first, first_reaching(end)))
    return found


def blanks_of(canvas: Canvas) -> list[tuple[int, int]]:
    """Return the runs of open positions `[start, end)` of a canvas, from left to right."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], canvas.open, [False])).astype(int)))
    return [(start, end) for start, end in edges.reshape(-1, 2).tolist()]


def seeded(prompts: PromptEncoder, canvas: Canvas, draft: DraftRequest) -> Canvas:
    """Return a canvas with a draft in its blanks: each begins with its draft, the rest stays open.

    Raises ConfigError and PromptError.
    """
    blanks = blanks_of(canvas)
    if not isinstance(draft.texts, list) and len(blanks) > 1:
        raise ConfigError(
            f"draft is one text for {len(blanks)} blanks; give a list with a text (or null) for each"
        ).about("draft")
    for (start, end), part in zip(blanks, draft.per_prompt(len(blanks)), strict=True):
        if part is None:
            continue
        canvas = write_draft(canvas, encode_draft(prompts, part), start, end)
    return canvas


def write_draft(canvas: Canvas, draft: DraftTokens, start: int, end: int) -> Canvas:
    """Return a canvas with a draft from position `start` on, before `end`. Raises ConfigError."""
    size = end - start
    if len(draft.ids) > size:
        where = "the blank" if canvas.infilling else "the answer"
        raise ConfigError(
            f"the draft is {len(draft.ids)} tokens long, but {where} has {size} positions; use "
            f"{len(draft.ids)} or more, or a shorter draft"
        ).about("draft")
    tokens = {start + at: id_ for at, id_ in enumerate(draft.ids) if id_ != canvas.mask_id}
    pins = {start + at: tokens[start + at] for at in draft.pinned}
    editable = {at: id_ for at, id_ in tokens.items() if at not in pins}
    return pin(pin(canvas, editable, is_draft=True), pins)


def check_draft(canvas: Canvas, decoder: AnyDecoder) -> None:
    """Raise ConfigError for a draft that the decoder would not change, or that leaves nothing open."""
    if decoder.grows:
        raise ConfigError(
            f"a draft needs an answer of constant length, but decoder {decoder.name!r} lets it grow; use "
            f"joint_threshold or wino"
        ).about("draft")
    if canvas.drafted.any() and not decoder.core.revises:
        raise ConfigError(
            f"decoder {decoder.name!r} never changes a decided token, so this draft would be the answer as "
            f"it is; use joint_threshold, wino or a decoder of your own that revises, or pin all of the "
            f"draft and leave other positions open"
        ).about("draft")
    if canvas.fixed[canvas.prompt_length :].all():
        raise ConfigError(
            "all positions of the answer are pinned; leave at least one of them to the model"
        ).about("pinned")


def within_edits(
    request: Request, canvas: Canvas, edit: Edit, shadows: Ints, reading: Reading
) -> Edit:
    """Return the part of an edit after which at most `max_edits` drafted positions differ from the draft.

    Open positions differ. `shadows`: the positions of the shadow queries. Replacements come first, the most
    confident ones before, then remasks, those of the least likely tokens before; ties to the
    lowest position.
    """
    drafted = np.flatnonzero(request.canvas.drafted)
    if request.max_edits is None or edit.is_empty or not len(drafted):
        return edit
    at = places(canvas, request.canvas)[drafted]
    is_same = (at >= 0) & ~canvas.open[at] & (canvas.tokens[at] == request.canvas.tokens[drafted])
    kept = at[is_same]
    room = max(0, request.max_edits - int((~is_same).sum()))
    lost = np.isin(edit.delete, kept)
    if int(lost.sum()) > room:
        edit, lost = replace(edit, delete=NO_POSITIONS), np.zeros(0, dtype=np.bool_)
    room -= int(lost.sum())
    odds = _values(reading.positions, reading.log_odds, edit.replace)
    exchange = _granted(np.isin(edit.replace, kept), odds, room)
    changed = edit.replace[exchange]
    room -= int(np.isin(changed, kept).sum())
    doubts = _values(shadows, -reading.shadow_log_odds, edit.remask)
    remask = _granted(np.isin(edit.remask, kept) & ~np.isin(edit.remask, changed), doubts, room)
    return replace(
        edit,
        replace=changed,
        replace_tokens=edit.replace_tokens[exchange],
        remask=edit.remask[remask],
    )


def _granted(costs: Bools, scores: Floats, room: int) -> Bools:
    """Return a flag per change, `(n,)`: it costs nothing, or is among the `room` best that cost one."""
    granted, costly = ~costs, np.flatnonzero(costs)
    granted[costly[np.argsort(-scores[costly], kind="stable")[:room]]] = True
    return granted


def _values(positions: Ints, values: Floats, wanted: Ints) -> Floats:
    """Return the value at each wanted position; -inf for one that is not among `positions`."""
    found = dict(zip(positions.tolist(), values.tolist(), strict=True))
    return np.array(
        [found.get(position, -np.inf) for position in wanted.tolist()], dtype=np.float64
    )
