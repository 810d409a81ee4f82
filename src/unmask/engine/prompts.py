"""Prompts, conversations and texts with blanks as canvases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

from unmask.canvas import Canvas, new_canvas
from unmask.engine.templates import ChatFormat, Messages
from unmask.engine.text_pool import TextPool
from unmask.engine.tokenizer import max_token_characters
from unmask.errors import ConfigError, LengthError, PromptError
from unmask.knobs import whole
from unmask.models.spec import ModelSpec


class PromptEncoder:
    """Prompts, conversations and texts with blanks as token ids and canvases of one model.

    `tokenizer` may be None: then prompts are token ids. `name` of the model, for errors. `chat_template`
    and `chat_template_kwargs` as in `ChatFormat`. `is_own`: the tokenizer comes with this package.
    """

    def __init__(
        self,
        tokenizer: Any | None,
        spec: ModelSpec,
        name: str,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        *,
        is_own: bool = False,
    ) -> None:
        self.tokenizer, self.spec, self.name = tokenizer, spec, name
        self.pool = TextPool(tokenizer, is_own=is_own)
        self.chat = ChatFormat(tokenizer, chat_template, chat_template_kwargs, self.pool)

    def prompt_canvas(
        self, prompt: Prompt, gen_length: int, *, raw: bool = False, option: str = "gen_length"
    ) -> Canvas:
        """Return a prompt followed by `gen_length` open positions.

        `option` is the caller's name of the length, for errors. Raises PromptError and ConfigError.
        """
        gen_length = whole(option, gen_length, 1)
        ids = self.prompt_ids(prompt, raw=raw)
        total = len(ids) + gen_length
        if total > self.spec.max_length:
            room = self.spec.max_length - len(ids)
            advice = f"use {option}={room} or less" if room > 0 else "shorten the prompt"
            raise LengthError(
                f"prompt of {len(ids)} tokens + {option}={gen_length} = {total}, but the model's "
                f"context is {self.spec.max_length}; {advice}"
            )
        blanks = [False] * len(ids) + [True] * gen_length
        return new_canvas([*ids, *[0] * gen_length], blanks, len(ids), self.spec.mask_id)

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Return the token ids of a prompt. Raises PromptError."""
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("the prompt is empty; give some text")
            self._need_tokenizer()
            if raw or self.chat.template() is None:
                return self._encode_short(prompt, special=True)
            return self.chat_ids([{"role": "user", "content": prompt}])
        if raw:
            raise ConfigError("raw=True is for text; token ids are always used unchanged")
        if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
            raise PromptError(f"prompt {prompt!r} must be a string or a list of token ids")
        if not prompt:
            raise PromptError("the prompt is empty; give at least one token id")
        for id_ in prompt:
            if isinstance(id_, bool) or not isinstance(id_, Integral):
                raise PromptError(f"token id {id_!r} is not a whole number")
            if not 0 <= id_ < self.spec.vocab_size:
                raise PromptError(f"token id {id_} is outside 0..{self.spec.vocab_size - 1}")
        return [int(id_) for id_ in prompt]

    def bare_ids(self, text: str) -> list[int]:
        """Return the token ids of a text with nothing before it. Raises PromptError."""
        if not text:
            raise PromptError("the prompt is empty; give some text")
        return self._encode_short(text, special=False)

    def chat_ids(self, messages: Messages, **options: Any) -> list[int]:
        """Return the token ids of a conversation in the model's chat template.

        Options and errors as those of `ChatFormat.render`.
        """
        self._need_tokenizer()
        return self._encode_short(self.chat.render(messages, **options), special=False)

    def infill_canvas(self, parts: Sequence[str | int]) -> Canvas:
        """Return a text with blanks as a canvas. Raises PromptError.

        A space before a blank is left out, as tokens begin with their space; of two spaces, one stays.
        """
        if isinstance(parts, str) or not any(isinstance(part, Integral) for part in parts):
            raise PromptError("infill needs a list with at least one number of blank tokens")
        ids, blanks = list[int](), list[bool]()
        for part, following in zip(parts, [*parts[1:], ""], strict=True):
            if isinstance(part, str):
                text = part.removesuffix(" ") if isinstance(following, Integral) else part
                new = self._encode_short(text, special=False)
                ids, blanks = ids + new, blanks + [False] * len(new)
            elif isinstance(part, bool) or not isinstance(part, Integral) or part < 1:
                raise PromptError(f"blank of {part!r} tokens: use a whole number, at least 1")
            else:
                ids, blanks = ids + [0] * int(part), blanks + [True] * int(part)
        if any(blanks[: len(self.begin)]) or ids[: len(self.begin)] != self.begin:
            ids, blanks = self.begin + ids, [False] * len(self.begin) + blanks
        if len(ids) > self.spec.max_length:
            raise LengthError(
                f"the text is {len(ids)} tokens long, the model's context {self.spec.max_length}"
            )
        return new_canvas(ids, blanks, blanks.index(True), self.spec.mask_id, infilling=True)

    def middle_canvas(
        self, prefix: Prompt, num_blanks: int, suffix: str, *, special: bool = True
    ) -> Canvas:
        """Return a text with one blank of `num_blanks` tokens as a canvas. Raises PromptError.

        A space at the end of `prefix` stays there, unlike in `infill_canvas`; a text may be empty, as the
        middle then begins the document. `special`: put the tokenizer's begin tokens before the text.
        """
        if isinstance(prefix, str):
            ids = self._encode_short(prefix, special=special)
        else:
            ids = self.prompt_ids(prefix)
        right = self._encode_short(suffix, special=False)
        total = len(ids) + num_blanks + len(right)
        if total > self.spec.max_length:
            raise LengthError(
                f"prompt of {len(ids)} tokens + {num_blanks} blanks + suffix of {len(right)} tokens = "
                f"{total}, but the model's context is {self.spec.max_length}; shorten one of them"
            )
        blanks = [False] * len(ids) + [True] * num_blanks + [False] * len(right)
        tokens = [*ids, *[0] * num_blanks, *right]
        return new_canvas(tokens, blanks, len(ids), self.spec.mask_id, infilling=True)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PromptError(f"model {self.name!r} has no tokenizer; give prompts as token ids")
        return self.tokenizer

    def _encode_short(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text; one that cannot fit is refused before it is tokenized."""
        most = self.spec.max_length
        if len(text) > most and (one := max_token_characters(self._need_tokenizer())) is not None:
            least = -(-len(text) // one)
            if least > most:
                raise LengthError(
                    f"a text of {len(text)} characters is at least {least} tokens long, but the model's "
                    f"context is {most}; shorten it"
                )
        return self.encode(text, special=special)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text, with the tokenizer's special tokens around it if `special`.

        A text that begins with the tokenizer's begin tokens, as after a chat template, has them once.
        Raises PromptError, and TextLimitError for a tokenizer that exceeds its time or memory.
        """
        ids = self._encoded(text, special=special)
        begin = self.begin if special else []
        is_double = begin and ids[len(begin) : 2 * len(begin)] == begin
        return ids[len(begin) :] if is_double else ids

    def with_begin(self, ids: list[int]) -> list[int]:
        """Return token ids with the tokenizer's begin tokens before them, once."""
        begin = self.begin
        return ids if ids[: len(begin)] == begin else [*begin, *ids]

    @cached_property
    def begin(self) -> list[int]:
        """The tokens that the tokenizer puts before every text."""
        plain, both = self._encoded("1", special=False), self._encoded("1", special=True)
        sizes = range(len(both) - len(plain) + 1)
        first = next((at for at in sizes if both[at : at + len(plain)] == plain), 0)
        return both[:first]

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        """Return what the tokenizer makes of a text. Raises PromptError."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError(
                f"the text {text!r} contains half a character (a lone surrogate); remove it"
            ) from None
        self._need_tokenizer()
        return self.pool.encode(text, special=special)


Prompt = str | Sequence[int]


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return one prompt or several as a list. Raises PromptError."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise PromptError(
            f"prompts of type {type(prompts).__name__}: give a string, a list of strings, or a list of "
            f"lists of token ids"
        )
    if len(prompts) and isinstance(prompts[0], Integral):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
