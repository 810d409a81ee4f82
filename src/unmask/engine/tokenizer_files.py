"""Checks of a checkpoint's tokenizer files before transformers and tokenizers read them.

Their values are bounded where reading or the first text would otherwise take memory without end, abort the
process, or open another file: the Rust library panics or runs out of memory instead of raising.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unmask.errors import ModelError
from unmask.models.folder_files import read_object, shortened

MAX_ID = 1 << 22
"""Maximum token id, several times the largest released vocabulary."""
MAX_TOKEN_CHARS = 1 << 14
"""Maximum number of characters of a token."""
MAX_REGEX_CHARS, MAX_REGEXES_CHARS = 4096, 1 << 14
"""Maximum number of characters of a regular expression, and of all: compiling takes the square of it."""
MAX_STAGES = 256
"""Maximum number of normalizers, pre-tokenizers, post-processors and decoders, and of template pieces."""
MAX_GROWTH = 1 << 16
"""Maximum factor by which the replacements of a tokenizer may lengthen a text."""
MAX_CHARSMAP_CHARS = 1 << 21
"""Maximum length of SentencePiece's table of replaced characters, in base64."""
MAX_PADDED = 1 << 20
"""Maximum length that a tokenizer may pad to."""
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
FOREIGN_KEYS = ("init_inputs", "gguf_file", "tokenizer_object", "fast_tokenizer_files")
"""Keys of tokenizer_config.json that name other files or arguments of a class."""


def check_tokenizer_files(folder: Path) -> None:
    """Raise ModelError for a tokenizer's files that are damaged, or that no tokenizer of a model has."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            _check_config(folder / name)
    if (folder / "added_tokens.json").exists():
        path = folder / "added_tokens.json"
        _check_vocabulary(path, read_object(path))
    if (folder / "tokenizer.json").exists():
        path = folder / "tokenizer.json"
        _check_whole(path, read_object(path))
    elif (folder / "vocab.json").exists():
        path = folder / "vocab.json"
        _check_vocabulary(path, read_object(path))
        for name in ("tekken.json", "tokenizer.model", "tiktoken.model"):
            if (folder / name).exists():
                raise _bad(folder / name, "is not read beside vocab.json", "remove one of them")


def _bad(path: Path, problem: str, remedy: str = "download it again") -> ModelError:
    return ModelError(f"{path}: {problem}; {remedy}")


def _check_config(path: Path) -> None:
    config = read_object(path)
    for key in FOREIGN_KEYS:
        if config.get(key) not in (None, [], ["tokenizer.json"]):
            raise _bad(path, f"{key}={shortened(repr(config[key]))} is not read", "remove the key")
    added = config.get("added_tokens_decoder")
    if added is None:
        return
    if not isinstance(added, dict):
        raise _bad(path, f"added_tokens_decoder={shortened(repr(added))} must be an object")
    for key, item in added.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 9):
            raise _bad(path, f"added_tokens_decoder has the id {shortened(repr(key))}")
        _check_token(path, item.get("content") if isinstance(item, dict) else None, int(key))


def _check_vocabulary(path: Path, tokens: object) -> None:
    """Check a vocabulary: an object from texts to ids, or a list of texts with scores."""
    if isinstance(tokens, list):
        tokens = {str(each[0]): 0 for each in tokens if isinstance(each, list) and each}
    if not isinstance(tokens, dict):
        raise _bad(path, "the vocabulary is no object")
    for text, id_ in tokens.items():
        _check_token(path, text, id_)


def _check_token(path: Path, text: object, id_: object) -> None:
    if type(id_) is not int or not 0 <= id_ <= MAX_ID:
        raise _bad(path, f"a token has the id {shortened(repr(id_))}; ids are 0 to {MAX_ID}")
    if not isinstance(text, str) or len(text) > MAX_TOKEN_CHARS:
        raise _bad(
            path,
            f"token {id_} is {shortened(repr(text))}; a token is a text of at most {MAX_TOKEN_CHARS} "
            f"characters",
        )


def _check_whole(path: Path, content: dict[str, object]) -> None:
    """Check the content of a `tokenizer.json`."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise _bad(path, "has no model")
    _check_vocabulary(path, model.get("vocab"))
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if not isinstance(model.get(key), (str, type(None))) or len(model.get(key) or "") > 64:
            raise _bad(path, f"{key}={shortened(repr(model[key]))} must be a short text")
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise _bad(path, "added_tokens must be a list")
    for item in added:
        fields = item if isinstance(item, dict) else {}
        _check_token(path, fields.get("content"), fields.get("id"))
    _check_lengths(path, content)
    stages = [stage for key in STAGES for stage in _stages(content.get(key))]
    if len(stages) > MAX_STAGES:
        raise _bad(path, f"has {len(stages)} stages; at most {MAX_STAGES} are allowed")
    _check_patterns(path, stages)
    for stage in stages:
        _check_template(path, stage)


def _stages(stage: object) -> Iterator[dict[str, object]]:
    """Yield a stage, or those in it; JSON is nested 32 deep at most."""
    if not isinstance(stage, dict):
        return
    yield stage
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        inner = stage.get(key)
        for each in inner if isinstance(inner, list) else []:
            yield from _stages(each)


def _check_lengths(path: Path, content: dict[str, object]) -> None:
    """Refuse a padding that fills memory, and a truncation whose windows do not advance."""
    padding, truncation = content.get("padding"), content.get("truncation")
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else 0
        for value in (fixed, padding.get("pad_to_multiple_of") or 0):
            if type(value) is not int or not 0 <= value <= MAX_PADDED:
                raise _bad(
                    path, f"padding={shortened(repr(padding))} pads to more than {MAX_PADDED}"
                )
    if isinstance(truncation, dict):
        length, stride = truncation.get("max_length"), truncation.get("stride")
        if type(length) is not int or type(stride) is not int or not 0 <= stride < max(1, length):
            raise _bad(
                path, f"truncation={shortened(repr(truncation))} has no stride below its length"
            )


def _check_patterns(path: Path, stages: list[dict[str, object]]) -> None:
    """Refuse patterns that match nothing, take long to compile, or whose replacements grow a text."""
    total, growth = 0, 1
    for stage in stages:
        pattern = stage.get("pattern")
        text = next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern
        if pattern is not None and not (isinstance(text, str) and text):
            raise _bad(
                path, f"a pattern is {shortened(repr(pattern))}; it must be a text, not empty"
            )
        size = len(text) if isinstance(text, str) else 0
        total += size
        if size > MAX_REGEX_CHARS or total > MAX_REGEXES_CHARS:
            raise _bad(
                path,
                f"a pattern has {size} characters, {total} with those before; at most {MAX_REGEX_CHARS} "
                f"and {MAX_REGEXES_CHARS} are read",
            )
        for key in ("content", "prepend"):
            made = stage.get(key)
            if isinstance(made, str):
                growth *= max(1, len(made))
        charsmap = stage.get("precompiled_charsmap")
        if isinstance(charsmap, str) and len(charsmap) > MAX_CHARSMAP_CHARS:
            raise _bad(path, f"precompiled_charsmap has over {MAX_CHARSMAP_CHARS} characters")
        if growth > MAX_GROWTH:
            raise _bad(path, f"its replacements make a text over {MAX_GROWTH} times as long")


def _check_template(path: Path, stage: dict[str, object]) -> None:
    """Refuse a template with more pieces than one needs, or with tokens that it does not define."""
    if stage.get("type") != "TemplateProcessing":
        return
    defined = stage.get("special_tokens")
    names = defined.keys() if isinstance(defined, dict) else set[str]()
    for key in ("single", "pair"):
        pieces = stage.get(key) or []
        if not isinstance(pieces, list) or len(pieces) > MAX_STAGES:
            raise _bad(path, f"{key} of its template must be a list of at most {MAX_STAGES} pieces")
        for piece in pieces:
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            if isinstance(token, dict) and token.get("id") not in names:
                raise _bad(
                    path, f"its template has {shortened(repr(token.get('id')))}, not defined"
                )
