"""Incremental detokenization: from a canvas that is decided in any order to text that only grows.

Text is released once it is final: the decided tokens from the left that the decoder will not revise, in
whole characters, up to where a stop string may begin. The released text is always a prefix of the answer's
text, so the concatenated chunks of a stream equal the text of the same request without a stream. This
requires a tokenizer that decodes a prefix of the tokens to a prefix of the text, as byte-level BPE does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.canvas import Canvas

REPLACEMENT = "\ufffd"
"""The decoded text of an incomplete character."""

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """The tokens and strings that end a text; neither is part of it."""

    stop_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()

    @property
    def num_held_back(self) -> int:
        """The number of last characters that may be the beginning of a stop string."""
        return max((len(stop) for stop in self.stops), default=1) - 1

    def find(self, text: str) -> int:
        """Return the index of the first stop string in `text`, or -1."""
        indices = [index for index in (text.find(stop) for stop in self.stops) if index >= 0]
        return min(indices, default=-1)


class TextStream:
    """The text of one answer, extended with every canvas that is fed.

    The answer is the positions from `start` on, at most `size` of them (None: all). `finish_reason` is
    "stop" after an end token or a stop string. `token_ids` are the tokens of the released text; with a stop
    string they include the token that completed it.
    """

    def __init__(
        self, decode: Decode, criteria: StopCriteria, start: int, size: int | None = None
    ) -> None:
        self._decode, self._criteria, self._start, self._size = decode, criteria, start, size
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop"] | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the answer so far."""
        return len(self.token_ids)

    def feed(self, canvas: Canvas, num_settled: int, *, is_last: bool = False) -> str:
        """Return the text that this canvas makes final, possibly none.

        `num_settled`: number of positions from the left that do not change once they are decided.
        `is_last`: the canvas is complete, so nothing is held back.
        """
        if self.finish_reason is not None:
            return ""
        ids, has_end = self._final_tokens(canvas, num_settled)
        is_complete = is_last or has_end
        if len(ids) == self.num_tokens and not is_complete:
            return ""
        text = self._decode(ids)
        index = self._criteria.find(text)
        if index >= 0:
            self.finish_reason = "stop"
            self.token_ids = ids[: self._num_tokens_to(ids, index)]
            return self._release(text[:index])
        self.token_ids = ids
        if has_end:
            self.finish_reason = "stop"
        if not is_complete:
            text = text.rstrip(REPLACEMENT)
            text = text[: max(0, len(text) - self._criteria.num_held_back)]
        return self._release(text)

    def _release(self, text: str) -> str:
        """Return what `text` adds to the released text."""
        if len(text) <= len(self.text):
            return ""
        new = text[len(self.text) :]
        self.text = text
        return new

    def _final_tokens(self, canvas: Canvas, num_settled: int) -> tuple[list[int], bool]:
        """Return the final tokens before the first end token, and True if there is one."""
        start = self._start
        limit = min(len(canvas), num_settled)
        if self._size is not None:
            limit = min(limit, start + self._size)
        open_ = canvas.open_positions(start, limit)
        stop = int(open_[0]) if len(open_) else max(start, limit)
        ids = canvas.tokens[start:stop].tolist()
        end = next((i for i, id_ in enumerate(ids) if id_ in self._criteria.stop_ids), None)
        return (ids, False) if end is None else (ids[:end], True)

    def _num_tokens_to(self, ids: Sequence[int], index: int) -> int:
        """Return the number of tokens that complete the stop string at `index`."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if 0 <= self._criteria.find(self._decode(list(ids[:middle]))) <= index:
                high = middle
            else:
                low = middle + 1
        return low
