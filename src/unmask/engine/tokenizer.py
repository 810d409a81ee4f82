"""The tokenizer of a checkpoint folder, through transformers, without running the folder's code."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from unmask.errors import ModelError


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None when it has none. Raises ModelError for an unreadable one.

    `tokenizer.json` is read directly; slow files (`vocab.json`, `merges.txt`) as Qwen2's, which is what
    Dream's own class is. The class named by the folder is never imported from it.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    try:
        return kind.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ModelError(f"{folder}: the tokenizer cannot be read ({error})") from error


def token_id(tokenizer: Any | None, text: str | None) -> int | None:
    """The id of one special token, or None when the tokenizer does not have it as one token."""
    if tokenizer is None or text is None:
        return None
    found = tokenizer.get_vocab().get(text)
    return None if found is None else int(found)


KEEPING = {"ByteLevel", "Digits", "Punctuation", "Split"}
"""Pre-tokenizers that lose no character, unless what they split at is removed."""
MOST_COMPOSED = 4
"""Characters that Unicode's composition makes one of at most, as of U+1F82."""


@lru_cache(maxsize=4)
def max_token_characters(tokenizer: Any) -> int | None:
    """How many characters of a text one token stands for at most; None where that is not known.

    Known of byte-level BPE, which writes every byte of a text: a token is as many bytes as its name has
    characters. Not if something may vanish: spaces around a special token, an unknown byte, what a
    normalizer or pre-tokenizer drops.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers.pre_tokenizers import ByteLevel

    parts = json.loads(backend.to_str())
    vocab, added = backend.get_vocab(), parts["added_tokens"]
    is_whole = parts["model"]["type"] == "BPE" and vocab.keys() >= set(ByteLevel.alphabet())
    if not is_whole or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    splits, changes = pieces(parts["pre_tokenizer"]), pieces(parts["normalizer"])
    kinds = {split["type"] for split in splits}
    drops = any(split.get("behavior") == "Removed" for split in splits)
    if "ByteLevel" not in kinds or not kinds <= KEEPING or drops:
        return None
    if not {change["type"] for change in changes} <= {"NFC", "NFD", "NFKC", "NFKD"}:
        return None
    return max(map(len, vocab)) * (MOST_COMPOSED if changes else 1)


def pieces(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list that it stands for."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inside = part.get("pretokenizers") or part.get("normalizers") or []
    return [piece for each in inside for piece in pieces(each)]
