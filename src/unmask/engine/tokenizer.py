"""The tokenizer of a checkpoint folder, loaded without running the folder's code.

`fast_tokenizer` reads the folders whose files say everything; transformers the others.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from unmask.engine.fast_tokenizer import FastTokenizer, read_fast
from unmask.engine.text_calls import reason_of
from unmask.engine.text_pool import try_in_worker
from unmask.engine.tokenizer_files import check_tokenizer_files
from unmask.errors import ModelError, cut_text
from unmask.models.folder_files import read_object
from unmask.models.folders import BUNDLED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATES, MAX_TEMPLATE_CHARS = 64, 1 << 20


TRIAL_TEXT, NUM_TRIAL_IDS = "A text of 7 words, \u00e9 and \u6587.\n", 256
"""Text that every tokenizer must encode, and number of token ids that it must decode."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Load a folder's tokenizer; None if it has none. Raises ModelError for an unreadable one.

    `tokenizer.json` is read directly; slow files (`vocab.json`, `merges.txt`) are read as Qwen2's, to which
    Dream's own class is equal. The folder's own class is never imported. Unless the model comes with this
    package, the files are first read in a process that they may crash.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return None
    if folder not in BUNDLED.values():
        check_tokenizer_files(folder)
        try_in_worker(folder)
    return _read(folder)


def try_tokenizer(folder: Path) -> None:
    """Read a folder's tokenizer and use it as the engine does. Raises ModelError."""
    tokenizer = _read(folder)
    try:
        max_token_characters(tokenizer)
        tokenizer.encode(TRIAL_TEXT)
        tokenizer.decode(list(range(min(len(tokenizer), NUM_TRIAL_IDS))))
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise ModelError(
            f"{folder}: the tokenizer cannot be used ({type(error).__name__}: {reason_of(error)}); "
            f"repair or replace tokenizer.json"
        ) from error


def _read(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer. Raises ModelError."""
    try:
        fast = read_fast(folder)
        # It turns into a tokenizer of transformers when it is used as one.
        tokenizer = _read_by_transformers(folder) if fast is None else _as_base(fast)
    except ModelError:
        raise
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for a broken file, or a panic
        raise ModelError(
            f"{folder}: the tokenizer cannot be read ({reason_of(error)}); repair or replace its files"
        ) from error
    check_decoder(tokenizer, folder)
    tokenizer.chat_template = _chat_templates(folder, tokenizer.chat_template)
    return tokenizer


def _as_base(tokenizer: FastTokenizer) -> PreTrainedTokenizerBase:
    return cast("PreTrainedTokenizerBase", tokenizer)


def _read_by_transformers(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; transformers raises any error."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(str(folder))
    return tokenizer


def _chat_templates(folder: Path, found: object) -> str | dict[str, str] | None:
    """Return the template or the templates by name. Raises ModelError for anything else.

    `found` is what transformers reads: `tokenizer_config.json`, `chat_template.jinja` and
    `additional_chat_templates`. Without these, `chat_template.json` of older processors is read.
    """
    file = folder / "chat_template.json"
    if not found and file.is_file():
        found = read_object(file).get("chat_template")
        if found is None:
            raise ModelError(f'{file} must hold {{"chat_template": TEXT}}; correct or remove it')
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
    if len(texts) > MAX_TEMPLATES or max(map(len, texts.values())) > MAX_TEMPLATE_CHARS:
        raise ModelError(
            f"{folder}: {len(texts)} chat templates of up to {max(map(len, texts.values()))} "
            f"characters; at most {MAX_TEMPLATES} of {MAX_TEMPLATE_CHARS} are read; download "
            f"tokenizer_config.json again"
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


REPETITION = re.compile(r"[*+?{]")
LOSSLESS = {"ByteLevel", "Digits", "Punctuation", "Split"}
"""Pre-tokenizers that drop no character, unless their behavior is "Removed"."""
MAX_COMPOSED = 4
"""Maximum number of characters that Unicode composes into one, as in U+1F82."""


class Stage(TypedDict, total=False):
    """A normalizer, pre-tokenizer or decoder in `tokenizer.json`; a "Sequence" contains others."""

    type: str
    behavior: str
    pattern: dict[str, str]
    content: str
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


MAX_GROWTH = 16
"""Maximum factor by which the replacements of a decoder may lengthen a text."""


def check_decoder(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Check that decoding takes time and memory in proportion to the text. Raises ModelError.

    It runs in the process of the engine, which nothing ends: a replacement may not lengthen texts much, and
    its regular expression must have at most one repetition, and none of a group.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    growth = 1.0
    for stage in stages(json.loads(backend.to_str())["decoder"]) if backend is not None else []:
        if stage["type"] != "Replace":
            continue
        text, expression = stage["pattern"].get("String"), stage["pattern"].get("Regex", "")
        growth *= max(
            1.0, len(stage["content"]) / (len(text) if text else 0.1 if text == "" else 1)
        )
        repetitions = len(REPETITION.findall(expression))
        if growth > MAX_GROWTH or repetitions > 1 or (repetitions and "(" in expression):
            raise ModelError(
                f"{folder}: the decoder in tokenizer.json replaces {cut_text(str(stage['pattern']))} in a "
                f"way that may take any time or memory; a text may grow by a factor of {MAX_GROWTH}, and a "
                f"regular expression have one repetition without groups; change the decoder"
            )


def stages(stage: Stage | None) -> list[Stage]:
    """Return the stages of a normalizer, pre-tokenizer or decoder, flattened."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    inner = stage.get("pretokenizers") or stage.get("normalizers") or stage.get("decoders") or []
    return [each for part in inner for each in stages(part)]
