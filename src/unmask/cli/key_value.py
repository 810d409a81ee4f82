"""A command line's prompt, flags and `key=value` words, merged into options."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from unmask.errors import ConfigError, ContradictionError, PromptError

WORD = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
BLANK = re.compile(r"(\{\{|\}\}|\{\d+\}|[{}])")
SPELLED = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MAX_BLANK_DIGITS = 9
SPELLINGS = {"quantize": "quantization"}
"""Older spellings of options."""


def split_words(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the prompt, if any, and the settings among positional words.

    `identifier=value` is a setting, except that a first word with white space is the prompt. Raises
    ConfigError for a second prompt or a setting given twice with different values.
    """
    prompt: str | None = None
    pairs: dict[str, str] = {}
    for index, word in enumerate(words):
        match = WORD.fullmatch(word)
        if match is None or (index == 0 and re.search(r"\s", word)):
            if prompt is not None:
                raise ConfigError(
                    f"unexpected word {word!r} after the prompt {_short(prompt)}; put the prompt in "
                    f"quotes and write settings as key=value"
                )
            prompt = word
            continue
        key = match[1].replace("-", "_")
        key = SPELLINGS.get(key, key)
        if pairs.setdefault(key, match[2]) != match[2]:
            raise ContradictionError(key, f"{key}={pairs[key]}", f"{key}={match[2]}")
    return prompt, pairs


def _short(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:20] + "...")


def refuse_words(pairs: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Raise ConfigError for settings that a command does not have; `reasons` by name."""
    for key, reason in reasons.items():
        if key in pairs:
            raise ConfigError(f"{key}={pairs[key]} is not for this command: {reason}")


def read_prompt(prompt: str | None, what: str = "prompt") -> str:
    """Return the prompt, or standard input when it is `-` or missing and input is piped.

    Raises PromptError when there is none, or it is empty or no text.
    """
    if prompt in (None, "-"):
        if prompt is None and sys.stdin.isatty():
            raise PromptError(f"no {what}; give one in quotes, or pipe it in")
        try:
            prompt = sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"standard input is not UTF-8 text ({error.reason})") from None
    assert prompt is not None, "read from standard input"
    if any(0xD800 <= ord(char) < 0xE000 for char in prompt):
        raise PromptError(f"the {what} is not UTF-8 text")
    if not prompt:
        raise PromptError(f"the {what} is empty; it needs at least one character")
    return prompt


def parse_blanks(text: str) -> list[str | int]:
    """Split `"The {3} sat"` into parts; `{{` and `}}` are braces. Raises PromptError."""
    parts: list[str | int] = [""]
    for piece in BLANK.split(text):
        last = parts[-1]
        if piece in ("{", "}"):
            raise PromptError(
                f"single {piece!r} in the text; a blank of 3 tokens is {{3}}, a brace is doubled: "
                f"{piece * 2}"
            )
        if piece.startswith("{") and piece != "{{":
            if len(piece) - 2 > MAX_BLANK_DIGITS:
                raise PromptError(f"a blank of {piece[1:-1]} tokens is longer than any context")
            parts.append(int(piece[1:-1]))
            continue
        plain = piece[0] if piece in ("{{", "}}") else piece
        if isinstance(last, str):
            parts[-1] = last + plain
        else:
            parts.append(plain)
    if not any(isinstance(part, int) for part in parts):
        raise PromptError("no blank in the text; a blank of 3 tokens is {3}")
    return [part for part in parts if part != ""]
