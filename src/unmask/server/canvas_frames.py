"""Canvas frames: the whole canvas after every forward, for streams with `stream_mode="canvas"`.

A frame is

    {"forward": 3, "num_settled": 12, "num_open": 20, "text": "...",
     "slots": [{"token": 316, "text": "In", "confidence": 0.98, "open": false, "new": true}, ...]}

`forward` counts from 1; frame 0 is the canvas before the first. `slots` are the positions of the answer; of
an infill those of the whole text, where the fixed ones have `"fixed": true`, and the tokens that only open
the text `"special": true`. An open position has token and confidence null and no text. `new`: this forward
wrote it; `taken_back`: this forward remasked it; `end`: it ends the text or the turn. `confidence` is null
where the method has none. `alternatives`, of new tokens with `trace_alternatives`: texts and probabilities
of the likeliest. The first `num_settled` positions will not change. `text` is the text without its end and
opening tokens, with a light shade for every open position, as in Mercury's `diffusing` streams.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unmask.canvas import Canvas, Edit, Reading, probability
from unmask.engine.outputs import Alternatives, alternatives_of
from unmask.engine.request import Request
from unmask.server.reply_models import CanvasPosition, StreamFrame

if TYPE_CHECKING:
    from unmask.engine.token_text import TokenTexts

OPEN_MARK = "\u2591"
UNKNOWN_LOGPROB = -9999.0
"""OpenAI's number for a log-probability that is not known, and the least one of any token."""


class Confidences:
    """The confidence in [0, 1] of every committed token, and the forward that decided it, by the uid of its
    position."""

    def __init__(self) -> None:
        self._by_uid: dict[int, float] = {}
        self._forward: dict[int, int] = {}
        self._likeliest: dict[int, list[tuple[int, float]]] = {}
        self._alternatives: dict[int, Alternatives] = {}

    def add_likeliest(
        self, before: Canvas, edit: Edit, reading: Reading, request: Request, num_top: int
    ) -> None:
        """Store the likeliest tokens at the positions that an edit of `before` decides.

        The first `num_top` and those of `named` are for `likeliest`, those of `num_alternatives` for
        `alternatives`.
        """
        others = alternatives_of(edit, reading, request.num_alternatives)
        self._alternatives |= {int(before.uid[at]): pairs for at, pairs in others.items()}
        if not (num_top or request.named):
            return
        for position in (*edit.commit.tolist(), *edit.replace.tolist()):
            row = int(np.searchsorted(reading.positions, position))
            if row < len(reading.positions) and reading.positions[row] == position:
                pairs = zip(
                    reading.top_tokens[row].tolist(),
                    reading.top_log_probs[row].tolist(),
                    strict=True,
                )
                unique = {
                    id_: max(share, UNKNOWN_LOGPROB)
                    for rank, (id_, share) in enumerate(pairs)
                    if id_ >= 0 and (rank < num_top or id_ in request.named)
                }
                self._likeliest[int(before.uid[position])] = list(unique.items())

    def likeliest(self, uid: int) -> list[tuple[int, float]]:
        """Return token ids and their log-probabilities when a token was decided; none without a request."""
        return self._likeliest.get(uid, [])

    def alternatives(self, uid: int) -> Alternatives:
        """Return token ids and their probabilities when a token was decided; none without a request."""
        return self._alternatives.get(uid, ())

    def apply(
        self, before: Canvas, edit: Edit, forward: int = 0, reading: Reading | None = None
    ) -> None:
        """Update the confidences with an edit of the canvas `before`, made by a forward.

        `reading`: that of the forward, in which replaced tokens have their confidence; without it they have
        none.
        """
        decided = np.concatenate((edit.commit, edit.replace))
        self._forward.update(dict.fromkeys(before.uid[decided].tolist(), forward))
        for uid in before.uid[edit.remask].tolist():
            self._forward.pop(uid, None)
            self._by_uid.pop(uid, None)
        uids = before.uid[edit.commit].tolist()
        self._by_uid.update(zip(uids, edit.confidence.tolist(), strict=True))
        replaced = zip(edit.replace.tolist(), edit.replace_tokens.tolist(), strict=True)
        for position, token in replaced:
            uid = int(before.uid[position])
            confidence = None if reading is None else probability_in(reading, position, token)
            self._by_uid.pop(uid, None)
            if confidence is not None:
                self._by_uid[uid] = confidence

    def get(self, uid: int) -> float | None:
        """Return a confidence, or None for a token without one (fixed, of a draft, filled in)."""
        return self._by_uid.get(uid)

    def forward(self, uid: int) -> int | None:
        """Return the forward, counted from 1, that decided a token; None for a token that none decided."""
        return self._forward.get(uid)

    def logprob(self, uid: int) -> float | None:
        """Return the logarithm of a confidence in nats, at least `UNKNOWN_LOGPROB`, or None."""
        confidence = self.get(uid)
        if confidence is None:
            return None
        return math.log(confidence) if confidence > 0 else UNKNOWN_LOGPROB


def probability_in(reading: Reading, position: int, token: int) -> float | None:
    """Return the probability of a token at a position, None for one that the reading does not have."""
    row = int(np.searchsorted(reading.positions, position))
    if row == len(reading.positions) or reading.positions[row] != position:
        return None
    if reading.tokens[row] == token:
        return float(probability(reading.log_odds[row]))
    if not reading.top_tokens.size:
        return None
    columns = np.flatnonzero(reading.top_tokens[row] == token)
    return float(np.exp(reading.top_log_probs[row, columns[0]])) if len(columns) else None


def canvas_frame(
    canvas: Canvas,
    change: tuple[Canvas, Edit] | None,
    confidences: Confidences,
    token_texts: TokenTexts,
    *,
    forward: int,
    num_settled: int,
    end_ids: frozenset[int] = frozenset(),
) -> StreamFrame:
    """Return the frame of a canvas.

    `change`: the canvas before the last forward and its edit (None: there was no forward). `end_ids`: the
    tokens that end a text or turn.
    """
    start = 0 if canvas.infilling else canvas.prompt_length
    written, remasked = changed_uids(change)
    texts = token_texts.of_positions(canvas, start)
    positions: list[CanvasPosition] = []
    is_opening = canvas.infilling
    for position, text in enumerate(texts, start):
        uid, is_open = int(canvas.uid[position]), bool(canvas.open[position])
        token = None if is_open else int(canvas.tokens[position])
        entry: CanvasPosition = {
            "token": token,
            "text": text,
            "confidence": None if is_open else confidences.get(uid),
            "open": is_open,
            "new": uid in written and not is_open,
        }
        if token in end_ids:
            entry["end"] = True
        if canvas.infilling:
            entry["fixed"] = bool(canvas.fixed[position])
            is_opening = is_opening and entry["fixed"] and token in token_texts.special
            if is_opening:
                entry["special"] = True
        others = confidences.alternatives(uid) if entry["new"] else ()
        if others:
            entry["alternatives"] = [(token_texts.text(id_), share) for id_, share in others]
        if uid in remasked:
            entry["taken_back"] = True
        positions.append(entry)
    return {
        "forward": forward,
        "num_settled": max(0, min(num_settled, len(canvas)) - start),
        "num_open": canvas.num_open,
        "text": "".join(
            OPEN_MARK if entry["open"] else entry["text"]
            for entry in positions
            if "end" not in entry and "special" not in entry
        ),
        "slots": positions,
    }


def changed_uids(change: tuple[Canvas, Edit] | None) -> tuple[set[int], set[int]]:
    """Return the uids of the positions that an edit wrote, and of those that it remasked."""
    if change is None:
        return set(), set()
    before, edit = change
    written = before.uid[edit.commit].tolist() + before.uid[edit.replace].tolist()
    first = before.next_uid + sum(count for _, count in edit.insert)
    appended = range(first, first + len(edit.append))
    return {*written, *appended}, set(before.uid[edit.remask].tolist())
