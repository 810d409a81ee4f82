"""Texts and bytes of single tokens, the texts safe to print in a terminal."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

from unmask.canvas import Canvas
from unmask.pictures.film import PositionTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.engine.tokenizer import Stage

MAX_TEXTS = 1 << 16
"""Size of the cache of texts of tokens and of neighboring tokens: 24 MB of pairs."""


def _decode(tokenizer: PreTrainedTokenizerBase | None, ids: tuple[int, ...]) -> str:
    if tokenizer is None:
        return "".join(f"<{id_}>" for id_ in ids)
    return str(tokenizer.decode(list(ids)))


BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A piece of a tokenizer with byte fallback that stands for one byte."""


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE.

    The printable characters of Latin-1 stand for themselves; the other bytes, in ascending order, have the
    characters from U+0100 on.
    """
    printable_bytes = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable_bytes]
    own = {chr(byte): byte for byte in printable_bytes}
    return own | {chr(0x100 + index): byte for index, byte in enumerate(others)}


class TokenTexts:
    """Texts and bytes of single tokens, cached. Without a tokenizer the text is the id."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._decode = lru_cache(MAX_TEXTS)(partial(_decode, tokenizer))
        self.special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kinds = decoder_kinds(json.loads(backend.to_str())["decoder"]) if backend else set[str]()
        self._has_bytes, self._is_byte_level = bool(kinds), "ByteLevel" in kinds

    def text(self, *ids: int) -> str:
        """Return the text of neighboring tokens; special tokens by name."""
        return self._decode(ids)

    def data(self, id_: int) -> bytes:
        """Return the UTF-8 bytes that a token contributes to a text, also of an incomplete character.

        A token with the name of a byte (`<0xE2>`) is that byte where the tokenizer falls back on bytes.
        """
        text = self.text(id_)
        if self._tokenizer is None or not self._has_bytes:
            return text.encode()
        piece = self._tokenizer.convert_ids_to_tokens(id_)
        is_added = id_ in self._tokenizer.added_tokens_decoder
        if not isinstance(piece, str) or is_added:
            return text.encode()
        if self._is_byte_level:
            alphabet = byte_alphabet()
            known = all(char in alphabet for char in piece)
            return bytes(alphabet[char] for char in piece) if known else text.encode()
        match = BYTE_PIECE.fullmatch(piece)
        return bytes([int(match[1], 16)]) if match else text.encode()

    def of_positions(self, canvas: Canvas, start: int) -> list[str]:
        """Return a text for every position from `start` on, empty for open ones.

        A character that consists of several tokens is the text of the first of them.
        """
        return texts_of_positions(self, canvas, start)


def texts_of_positions(texts_of: PositionTexts, canvas: Canvas, start: int) -> list[str]:
    """Return a text for every position from `start` on, empty for open ones; see `TokenTexts`."""
    ids, is_open = canvas.tokens.tolist(), canvas.open.tolist()
    texts = ["" if hidden else texts_of.text(id_) for id_, hidden in zip(ids, is_open, strict=True)]
    for position in range(start, len(ids)):
        if "\ufffd" not in texts[position]:
            continue
        for end in range(position + 2, min(position + 4, len(ids)) + 1):
            if any(is_open[position:end]):
                break
            joined = texts_of.text(*ids[position:end])
            if "\ufffd" not in joined:
                texts[position:end] = [joined, *[""] * (end - position - 1)]
                break
    return texts[start:]


def decoder_kinds(decoder: Stage | None) -> set[str]:
    """Return the kinds of a tokenizer's decoder that make bytes of pieces: ByteLevel and ByteFallback."""
    parts = [decoder] if decoder is not None else []
    found: set[str] = set()
    while parts:
        part = parts.pop()
        parts += part.get("decoders", [])
        found |= {part["type"]} & {"ByteLevel", "ByteFallback"}
    return found
