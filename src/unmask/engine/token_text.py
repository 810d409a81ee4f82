"""Texts of single tokens, safe to print in a terminal."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING
from unicodedata import category

from unmask.canvas import Canvas

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXTS = 1 << 16
"""Size of the cache of texts of tokens and of neighboring tokens: 24 MB of pairs."""


def printable(text: str) -> str:
    """Replace control characters other than line ends and tabs, which could drive a terminal."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else "\ufffd" for c in text)


def _decode(tokenizer: PreTrainedTokenizerBase | None, ids: tuple[int, ...]) -> str:
    if tokenizer is None:
        return "".join(f"<{id_}>" for id_ in ids)
    return str(tokenizer.decode(list(ids)))


class TokenTexts:
    """Texts of single tokens, cached. Without a tokenizer the text is the id."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._decode = lru_cache(MAX_TEXTS)(partial(_decode, tokenizer))
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))

    def text(self, *ids: int) -> str:
        """Return the text of neighboring tokens; special tokens by name."""
        return self._decode(ids)

    def of_positions(self, canvas: Canvas, start: int) -> list[str]:
        """Return a text for every position from `start` on, empty for open ones.

        A character that consists of several tokens is the text of the first of them.
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
