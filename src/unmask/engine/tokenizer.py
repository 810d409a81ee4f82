"""The tokenizer of a checkpoint folder, through transformers, without running the folder's code."""

from __future__ import annotations

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
