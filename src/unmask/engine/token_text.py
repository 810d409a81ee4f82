"""Text of single tokens, safe to print in a terminal."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any
from unicodedata import category

from unmask.canvas import Canvas

MAX_TEXTS = 1 << 16
"""Texts of tokens, and of tokens side by side, that are remembered: 24 MB of pairs."""


def printable(text: str) -> str:
    """`text` without the control characters that could drive a terminal; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else "\ufffd" for c in text)


def _decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


class TokenTexts:
    """Texts of tokens, one by one. `tokenizer` None shows the numbers."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer = tokenizer
        self._decoded = lru_cache(MAX_TEXTS)(partial(_decoded, tokenizer))
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))

    def text(self, *ids: int) -> str:
        """Text of neighboring tokens; special tokens by name."""
        if self._tokenizer is None:
            return "".join(f"<{id_}>" for id_ in ids)
        return self._decoded(ids)

    def of_positions(self, canvas: Canvas, start: int) -> list[str]:
        """A text for every position from `start` on, empty where open.

        A character that is spread over several tokens is shown at the first of them.
        """
        ids, is_open = canvas.tokens.tolist(), canvas.open.tolist()
        texts = ["" if hidden else self.text(id_) for id_, hidden in zip(ids, is_open, strict=True)]
        for position in range(start, len(ids)):
            if "\ufffd" not in texts[position]:
                continue
            for end in range(position + 2, min(position + 4, len(ids)) + 1):
                if any(is_open[position:end]):
                    break
                joined = self.text(*ids[position:end])
                if "\ufffd" not in joined:
                    texts[position:end] = [joined, *[""] * (end - position - 1)]
                    break
        return texts[start:]
