"""Calls of the two programs of a checkpoint that read texts: its chat template and its tokenizer.

They run with whatever time and memory the process has; `TextPool` runs them in processes with limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.engine.fast_tokenizer import FastTokenizer
from unmask.errors import PromptError, cut_text

MAX_REASON = 300
MAX_TEXT = 1 << 24
"""Maximum number of characters that a template may give, and of tokens that a tokenizer may."""


def render(
    tokenizer: Any,
    template: str,
    messages: Sequence[Mapping[str, object]],
    variables: Mapping[str, object],
) -> str:
    """Return the text of messages in a template. Raises PromptError for whatever goes wrong in it.

    MemoryError is not caught: the caller knows its limit.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import TemplateError

    options = {"add_generation_prompt": True, "continue_final_message": False, **variables}
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, **options
        )
    except TemplateSyntaxError as error:
        raise PromptError(
            f"the model's chat template is no valid Jinja: line {error.lineno}: {reason_of(error)}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a template may raise anything
        is_own = type(error) is TemplateError  # by raise_exception('...')
        verb = "refuses" if is_own else "fails on"
        kind = "" if is_own else f"{type(error).__name__}: "
        raise PromptError(
            f"the model's chat template {verb} these messages: {kind}{reason_of(error)}"
        ) from None
    if not isinstance(text, str):
        raise PromptError(f"the model's chat template gives a {type(text).__name__}, no text")
    if len(text) > MAX_TEXT:
        raise PromptError(
            f"the model's chat template makes {len(text)} characters of these messages; at most "
            f"{MAX_TEXT} are allowed; shorten the conversation or choose another template"
        )
    return text


def encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Return the token ids of a text, with the tokenizer's special tokens around it if `special`.

    Raises PromptError for whatever goes wrong in the tokenizer, except for MemoryError.
    """
    try:
        if isinstance(tokenizer, FastTokenizer):
            ids = tokenizer.encode(text, add_special_tokens=special)
        else:  # of transformers, or the caller's own
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
        raise PromptError(
            f"the model's tokenizer fails on a text of {len(text)} characters: "
            f"{type(error).__name__}: {reason_of(error)}; change the text, or repair tokenizer.json"
        ) from None
    if len(ids) > MAX_TEXT:
        raise PromptError(
            f"the model's tokenizer makes {len(ids)} tokens of a text of {len(text)} characters; at "
            f"most {MAX_TEXT} are allowed; shorten the text"
        )
    return [int(id_) for id_ in ids]


def reason_of(error: BaseException) -> str:
    """Return an error's text in one short line."""
    return cut_text(" ".join(str(error)[: 8 * MAX_REASON].split()), MAX_REASON) or "no reason given"
