"""The tokenizer of a checkpoint folder, loaded by transformers without running the folder's code."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from unmask.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Load a folder's tokenizer; None if it has none. Raises ModelError for an unreadable one.

    `tokenizer.json` is read directly; slow files (`vocab.json`, `merges.txt`) are read as Qwen2's, to which
    Dream's own class is equal. The folder's own class is never imported.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ModelError(f"{folder}: the tokenizer cannot be read ({error})") from error
    tokenizer.chat_template = _chat_templates(folder, tokenizer.chat_template)
    return tokenizer


def _chat_templates(folder: Path, found: object) -> str | dict[str, str] | None:
    """Return the template or the templates by name. Raises ModelError for anything else.

    `found` is what transformers reads: `tokenizer_config.json`, `chat_template.jinja` and
    `additional_chat_templates`. Without these, `chat_template.json` of older processors is read.
    """
    file = folder / "chat_template.json"
    if not found and file.is_file():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                f"{file} cannot be read ({type(error).__name__}: {str(error)[:200]}); it must hold "
                f'{{"chat_template": TEXT}}, or remove it'
            ) from error
    if not found:
        return None
    if isinstance(found, list):
        items = [item if isinstance(item, dict) else {} for item in found]
        found = {str(item.get("name")): item.get("template") for item in items}
    named = found if isinstance(found, dict) else {"default": found}
    texts = {
        key: text for key, text in named.items() if isinstance(key, str) and isinstance(text, str)
    }
    if len(texts) < len(named):
        raise ModelError(
            f"{folder}: chat_template in tokenizer_config.json or {file.name} must be a text, or a list of "
            f"{{name, template}} with texts"
        )
    return texts if isinstance(found, dict) else texts["default"]


def token_id(tokenizer: PreTrainedTokenizerBase | None, text: str | None) -> int | None:
    """Return the id of a token by its text; None if the tokenizer has no such token."""
    if tokenizer is None or text is None:
        return None
    return tokenizer.get_vocab().get(text)


def known_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all tokens, which may have holes: the highest may exceed their number."""
    return frozenset(tokenizer.get_vocab().values())


LOSSLESS = {"ByteLevel", "Digits", "Punctuation", "Split"}
"""Pre-tokenizers that drop no character, unless their behavior is "Removed"."""
MAX_COMPOSED = 4
"""Maximum number of characters that Unicode composes into one, as in U+1F82."""


class Stage(TypedDict, total=False):
    """A normalizer, pre-tokenizer or decoder in `tokenizer.json`; a "Sequence" contains others."""

    type: str
    behavior: str
    pretokenizers: list[Stage]
    normalizers: list[Stage]
    decoders: list[Stage]


@lru_cache(maxsize=4)
def max_token_characters(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the maximum number of characters of a text per token; None if there is no bound.

    There is one for byte-level BPE, which encodes every byte of a text: a token has as many bytes as its
    name has characters. There is none if characters may be dropped: spaces around a special token, unknown
    bytes, or those that a normalizer or pre-tokenizer removes.
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
    splits, changes = stages(parts["pre_tokenizer"]), stages(parts["normalizer"])
    kinds = {split["type"] for split in splits}
    drops = any(split.get("behavior") == "Removed" for split in splits)
    if "ByteLevel" not in kinds or not kinds <= LOSSLESS or drops:
        return None
    if not {change["type"] for change in changes} <= {"NFC", "NFD", "NFKC", "NFKD"}:
        return None
    return max(map(len, vocab)) * (MAX_COMPOSED if changes else 1)


def stages(stage: Stage | None) -> list[Stage]:
    """Return the stages of a normalizer or pre-tokenizer, flattened."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    inner = stage.get("pretokenizers") or stage.get("normalizers") or []
    return [each for part in inner for each in stages(part)]
