"""The bytes that each token contributes to a text, for a whole vocabulary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from unmask.engine.token_text import BYTE_PIECE, byte_alphabet, decoder_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenData = list[bytes | None]
"""Bytes by token id; None for a token that no constrained text may contain."""


class VocabularyBytes(NamedTuple):
    """The bytes of every token at the beginning of a text (`first`) and after other tokens (`later`).

    They differ for tokenizers that drop a space at the beginning, or put one between tokens.
    """

    first: TokenData
    later: TokenData


def vocabulary_bytes(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, mask_id: int
) -> VocabularyBytes:
    """Return the bytes of all token ids; special tokens, the mask and ids without a token have None."""
    known = set(tokenizer.get_vocab().values()) - {mask_id}
    known -= set(getattr(tokenizer, "all_special_ids", ()))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kinds = decoder_kinds(json.loads(backend.to_str())["decoder"]) if backend else set[str]()
    ids = [id_ for id_ in range(vocab_size) if id_ in known]
    first, later = (list[bytes | None]([None] * vocab_size) for _ in range(2))
    pieces = tokenizer.convert_ids_to_tokens(ids) if kinds else [""] * len(ids)
    alphabet = byte_alphabet()
    anchor = _anchor(tokenizer, ids) if "ByteLevel" not in kinds else 0
    for id_, piece in zip(ids, pieces, strict=True):
        if id_ in added:
            if not added[id_].special:
                first[id_] = later[id_] = added[id_].content.encode()
        elif "ByteLevel" in kinds:
            if all(char in alphabet for char in piece):
                first[id_] = later[id_] = bytes(alphabet[char] for char in piece)
        elif (match := BYTE_PIECE.fullmatch(piece)) is not None:
            first[id_] = later[id_] = bytes([int(match[1], 16)])
        else:
            first[id_], later[id_] = _in_place(tokenizer, anchor, id_)
    return VocabularyBytes(first, later)


def _anchor(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """Return a token with a text of its own, after which others are read."""
    texts = ((id_, str(tokenizer.decode([id_]))) for id_ in ids)
    return next((id_ for id_, text in texts if text.strip() and "\ufffd" not in text), ids[0])


def _in_place(
    tokenizer: PreTrainedTokenizerBase, anchor: int, id_: int
) -> tuple[bytes | None, bytes | None]:
    """Return the bytes of a token at the beginning of a text and after `anchor`."""
    alone, before = str(tokenizer.decode([id_])), str(tokenizer.decode([anchor]))
    both = str(tokenizer.decode([anchor, id_]))
    if "\ufffd" in both or not both.startswith(before):
        return None, None
    return alone.encode(), both[len(before) :].encode()
