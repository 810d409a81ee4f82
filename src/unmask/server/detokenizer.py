"""From a canvas that fills in any order to text that only grows.

Text is released when it can no longer change: the tokens from the left that are decided and that the
decoder will not revise, in whole characters, and as far as no stop string may begin. What was released is a
prefix of the answer's text, so a stream's pieces put together are the text of the reply without a stream.
This holds for tokenizers whose text of a prefix is a prefix of the text, as byte-level BPE's is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.canvas import Canvas

HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character (yet)."""

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends the text: `stop_ids` (not part of it) and the `stops` strings (cut off)."""

    stop_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()

    @property
    def holdback(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        return max((len(stop) for stop in self.stops), default=1) - 1

    def find(self, text: str) -> int:
        """Where the first stop string begins, or -1."""
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        return min(found, default=-1)


class TextStream:
    """The text of one answer, fed with canvases, asked for what is new.

    The answer is the positions from `start` on, up to `size` of them (None: all). `ended` says that the
    text is over: "stop" after an end token or a stop string. `num_tokens` are the tokens that the released
    text was read from: with a stop string, up to the token that completed it.
    """

    def __init__(self, decode: Decode, ends: Ends, start: int, size: int | None = None) -> None:
        self._decode, self._ends, self._start, self._size = decode, ends, start, size
        self.text = ""
        self.token_ids: list[int] = []
        self.ended: Literal["stop"] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids)

    def feed(self, canvas: Canvas, num_settled: int, *, is_last: bool = False) -> str:
        """The text that became certain with this canvas; empty when none did.

        `num_settled`: positions from the left that will not change once they are decided. `is_last`: the
        canvas is complete, so nothing is held back.
        """
        if self.ended is not None:
            return ""
        ids, has_end = self._certain(canvas, num_settled)
        complete = is_last or has_end
        if len(ids) == self.num_tokens and not complete:
            return ""
        text = self._decode(ids)
        at = self._ends.find(text)
        if at >= 0:
            self.ended = "stop"
            self.token_ids = ids[: self._completing(ids, text, at)]
            return self._release(text[:at])
        self.token_ids = ids
        if has_end:
            self.ended = "stop"
        if not complete:
            text = text.rstrip(HALF)
            text = text[: max(0, len(text) - self._ends.holdback)]
        return self._release(text)

    def _release(self, text: str) -> str:
        """What `text` has beyond the text so far."""
        if len(text) <= len(self.text):
            return ""
        new = text[len(self.text) :]
        self.text = text
        return new

    def _certain(self, canvas: Canvas, num_settled: int) -> tuple[list[int], bool]:
        """The answer's decided tokens from the left that stay, and whether an end token follows."""
        start = self._start
        limit = min(len(canvas), num_settled)
        if self._size is not None:
            limit = min(limit, start + self._size)
        open_ = canvas.open_positions(start, limit)
        stop = int(open_[0]) if len(open_) else max(start, limit)
        ids = canvas.tokens[start:stop].tolist()
        end = next((i for i, id_ in enumerate(ids) if id_ in self._ends.stop_ids), None)
        return (ids, False) if end is None else (ids[:end], True)

    def _completing(self, ids: Sequence[int], text: str, at: int) -> int:
        """How many tokens it takes until the stop string at `at` is there."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if 0 <= self._ends.find(self._decode(list(ids[:middle]))) <= at:
                high = middle
            else:
                low = middle + 1
        return low
