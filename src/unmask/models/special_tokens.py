"""Ids of special tokens from a tokenizer's files, for configs that leave them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from unmask.errors import ModelError


def added_token_id(folder: Path, text: str) -> int | None:
    """Return the id of the added token with this text, or None when no file of the folder has it.

    Reads `tokenizer_config.json`, then `tokenizer.json`. Raises ModelError for files that are not JSON.
    """
    for name in ("tokenizer_config.json", "tokenizer.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ModelError(f"{path}: not valid JSON ({error})") from None
        for id_, spelled in _added(content):
            if spelled == text:
                return id_
    return None


def _added(content: object) -> Iterator[tuple[int, str]]:
    if not isinstance(content, dict):
        return
    decoder, tokens = content.get("added_tokens_decoder"), content.get("added_tokens")
    if isinstance(decoder, dict):
        for key, item in decoder.items():
            if str(key).isdecimal() and isinstance(item, dict):
                yield int(key), str(item.get("content"))
    if isinstance(tokens, list):
        for item in tokens:
            if isinstance(item, dict) and isinstance(item.get("id"), int):
                yield item["id"], str(item.get("content"))
