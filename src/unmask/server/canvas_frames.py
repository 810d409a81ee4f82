"""The whole canvas after every forward, for clients that ask to watch (`stream_mode="canvas"`).

A frame is

    {"forward": 3, "num_settled": 12, "num_open": 20, "text": "...",
     "positions": [{"token": 316, "text": "In", "confidence": 0.98, "open": false, "new": true}, ...]}

`forward` counts from 1; frame 0 is the canvas before the first. Positions are those of the answer; of an
infill those of the whole text, where given ones say `"fixed": true`, and `"special": true` when they only
open the text. An open position has token and confidence null and no text. `new`: this forward wrote it;
`taken_back`: this forward opened it again; `end`: it ends the text or the turn. `confidence` is null
where the method does not say. `num_settled` positions from the left will not change. `text` is the text
without its ends and what opens it, with a light shade for every open position: what Mercury's `diffusing`
streams send as content.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from unmask.canvas import Canvas, Edit

if TYPE_CHECKING:
    from unmask.engine.token_text import TokenTexts

OPEN_MARK = "\u2591"


class Confidences:
    """The confidence with which each position's token was committed, by the position's identity."""

    def __init__(self) -> None:
        self._of: dict[int, float] = {}

    def follow(self, before: Canvas, edit: Edit) -> None:
        """Take over an edit that was made on `before`."""
        for uid in before.uid[edit.replace].tolist() + before.uid[edit.remask].tolist():
            self._of.pop(uid, None)
        for uid, p in zip(before.uid[edit.commit].tolist(), edit.confidence.tolist(), strict=True):
            self._of[uid] = p
        replaced = set(edit.replace.tolist())
        for position, uid in zip(
            edit.commit.tolist(), before.uid[edit.commit].tolist(), strict=True
        ):
            if position in replaced:
                del self._of[uid]

    def of(self, uid: int) -> float | None:
        """In [0, 1]; None for a token whose probability is not known (given, edited, filled in)."""
        return self._of.get(uid)

    def log_probability(self, uid: int) -> float | None:
        """In nats, at least -9999; None where not known."""
        p = self.of(uid)
        if p is None:
            return None
        return math.log(p) if p > 0 else -9999.0


def frame(
    canvas: Canvas,
    changed: tuple[Canvas, Edit] | None,
    confidences: Confidences,
    pieces: TokenTexts,
    *,
    forward: int,
    num_settled: int,
    end_ids: frozenset[int] = frozenset(),
) -> dict[str, Any]:
    """The frame of a canvas; `changed` is what the last forward saw and did (None: there was none).

    `end_ids` are the tokens that end a text or turn.
    """
    start = 0 if canvas.infilling else canvas.prompt_length
    fresh, taken = changes(changed)
    texts = pieces.of_positions(canvas, start)
    positions = []
    is_opening = canvas.infilling
    for offset, text in enumerate(texts):
        position = start + offset
        uid, is_open = int(canvas.uid[position]), bool(canvas.open[position])
        entry: dict[str, Any] = {
            "token": None if is_open else int(canvas.tokens[position]),
            "text": text,
            "confidence": None if is_open else confidences.of(uid),
            "open": is_open,
            "new": uid in fresh and not is_open,
        }
        if entry["token"] in end_ids:
            entry["end"] = True
        if canvas.infilling:
            entry["fixed"] = bool(canvas.fixed[position])
            is_opening = is_opening and entry["fixed"] and entry["token"] in pieces.special
            if is_opening:
                entry["special"] = True
        if uid in taken:
            entry["taken_back"] = True
        positions.append(entry)
    return {
        "forward": forward,
        "num_settled": max(0, min(num_settled, len(canvas)) - start),
        "num_open": canvas.num_open,
        "text": "".join(
            OPEN_MARK if item["open"] else item["text"]
            for item in positions
            if "end" not in item and "special" not in item
        ),
        "slots": positions,
    }


def changes(changed: tuple[Canvas, Edit] | None) -> tuple[set[int], set[int]]:
    """Identities of the positions that were written and of those that were opened again."""
    if changed is None:
        return set(), set()
    before, edit = changed
    written = before.uid[edit.commit].tolist() + before.uid[edit.replace].tolist()
    first = before.next_uid + sum(count for _, count in edit.insert)
    appended = range(first, first + len(edit.append))
    return {*written, *appended}, set(before.uid[edit.remask].tolist())
