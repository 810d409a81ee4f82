"""`LLM`: prompts in, outputs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from unmask.caches import make_cache
from unmask.canvas import Canvas, ModelFacts, new_canvas
from unmask.engine import request as request_module
from unmask.engine.loop import Event, decode
from unmask.engine.options import (
    INFILL_OPTIONS,
    OPTIONS,
    STREAM_OPTIONS,
    Prompt,
    configure,
    flags,
    prompt_list,
)
from unmask.engine.request import Output, Request
from unmask.engine.runner import Runner
from unmask.engine.tokenizer import load_tokenizer, token_id
from unmask.errors import ConfigError, ModelError, PromptError
from unmask.knobs import whole
from unmask.models import load_model, resolve_model
from unmask.models._transformer import Transformer
from unmask.sampling import Vocabulary

Messages = list[dict[str, str]]


class LLM:
    """A loaded model with its tokenizer.

    `model`: a bundled name ("demo"), a checkpoint folder, a hub id, or a `Transformer`. `dtype`, e.g.
    "float32" (the CPU's default) or "bfloat16"; `device`, e.g. "cpu" or "cuda". `tokenizer` overrides
    the folder's. Raises ModelError and ConfigError like `load_model`.
    """

    def __init__(
        self,
        model: str | Path | Transformer = "demo",
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tokenizer: Any | None = None,
    ) -> None:
        if isinstance(model, Transformer):
            if dtype is not None or device is not None:
                raise ConfigError(
                    "dtype and device belong to loading; this model is loaded already"
                )
            self.name, self.model, self.tokenizer = "model", model, tokenizer
        else:
            folder = resolve_model(model)
            self.name = str(model)
            self.model = load_model(folder, dtype, device)
            self.tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
        self.spec = self.model.spec
        self.vocabulary = self._vocabulary()
        self.facts = ModelFacts(
            vocab_size=self.spec.vocab_size,
            eos_id=self.vocabulary.eos_id,
            turn_end_id=self.vocabulary.turn_end_id,
            block_size=self.spec.block_size,
        )
        ends = (self.vocabulary.eos_id, self.vocabulary.turn_end_id)
        self.stop_ids = frozenset(id_ for id_ in ends if id_ is not None)

    def _vocabulary(self) -> Vocabulary:
        rows = self.spec.vocab_size
        known = rows if self.tokenizer is None else len(self.tokenizer)
        if known > rows:
            raise ModelError(f"the tokenizer has {known} tokens, the model only {rows} rows")
        if not 0 <= self.spec.mask_id < rows:
            raise ModelError(f"mask_token_id={self.spec.mask_id} is outside the {rows} rows")
        forbidden = sorted({self.spec.mask_id, *range(known, rows)})
        return Vocabulary(
            forbidden=torch.tensor(forbidden, device=self.model.device),
            eos_id=self.spec.eos_id if self.spec.eos_id < rows else None,
            turn_end_id=token_id(self.tokenizer, self.spec.turn_end),
        )

    def generate(  # noqa: PLR0913 - the call's options are the interface
        self,
        prompts: Prompt | Sequence[Prompt],
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        gen_length: int = 128,
        seed: int = 0,
        stop_at_eos: bool = True,
        return_trace: bool = False,
        raw: bool = False,
        max_batch_size: int = 32,
        **knobs: Any,
    ) -> list[Output]:
        """Decode an answer to every prompt, in order.

        `prompts`: a string, strings, or lists of token ids (used as given). A string is one user turn in
        the model's chat template when it has one; `raw=True` takes it as plain text. `gen_length`
        slots are generated; `stop_at_eos` ends early when an end token has everything before it.
        `seed` fixes all randomness of a request, whatever the batch. `max_batch_size` rows share a
        forward. `knobs`: `temperature`, `cfg_scale`, `logits_eos_inf`, `confidence_eos_eot_inf`, and
        the decoder's own (`steps`, `block_length`, `threshold`, `factor`, `remasking`, `compat`...).

        Raises PromptError (empty, too long, ids outside the vocabulary) and ConfigError (anything that
        is not allowed, with the nearest name).
        """
        max_batch_size = whole("max_batch_size", max_batch_size, 1)
        flags(stop_at_eos=stop_at_eos, return_trace=return_trace, raw=raw)
        listed = prompt_list(prompts)
        make = self._maker(decoder, cache, seed, stop_at_eos, knobs)
        canvases = [self.prompt_canvas(prompt, gen_length, raw=raw) for prompt in listed]
        finished = self._run([make(canvas) for canvas in canvases], max_batch_size)
        return [self.output(sequence, return_trace) for sequence in finished]

    def chat(self, messages: Messages, decoder: str = "vanilla", **options: Any) -> Output:
        """The assistant's next turn. `messages`: dicts with "role" and "content"; options as `generate`."""
        return self.generate([self.chat_ids(messages)], decoder, **options)[0]

    def infill(
        self,
        parts: Sequence[str | int],
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        seed: int = 0,
        return_trace: bool = False,
        **knobs: Any,
    ) -> Output:
        """Fill the blanks of a text: `parts` are strings and numbers of blank tokens.

        `infill(["The ", 3, " sat on the mat."])`. The whole text is one block unless `block_length`
        says otherwise. `out.text` is the whole text, `out.blanks` the fillings.
        """
        make = self._maker(decoder, cache, seed, False, knobs, INFILL_OPTIONS)
        canvas = self.infill_canvas(parts)
        return self.output(self._run([make(canvas)], 1)[0], return_trace)

    def stream(
        self,
        canvas: Canvas,
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        seed: int = 0,
        stop_at_eos: bool = True,
        **knobs: Any,
    ) -> Iterator[Event]:
        """Decode one canvas (`prompt_canvas`, `infill_canvas`), an event a forward."""
        make = self._maker(decoder, cache, seed, stop_at_eos, knobs, STREAM_OPTIONS)
        request = make(canvas)
        yield from self._events([request], 1)

    def prompt_canvas(self, prompt: Prompt, gen_length: int, *, raw: bool = False) -> Canvas:
        """A prompt followed by `gen_length` open slots. Raises PromptError and ConfigError."""
        gen_length = whole("gen_length", gen_length, 1)
        ids = self.prompt_ids(prompt, raw=raw)
        total = len(ids) + gen_length
        if total > self.spec.max_length:
            room = self.spec.max_length - len(ids)
            advice = f"use gen_length={room} or less" if room > 0 else "shorten the prompt"
            raise PromptError(
                f"prompt of {len(ids)} tokens + gen_length={gen_length} = {total}, but the model's "
                f"context is {self.spec.max_length}; {advice}"
            )
        blanks = [False] * len(ids) + [True] * gen_length
        return new_canvas([*ids, *[0] * gen_length], blanks, len(ids), self.spec.mask_id)

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of a prompt. Raises PromptError."""
        if isinstance(prompt, str):
            if not prompt.strip():
                raise PromptError("the prompt is empty; give some text")
            if raw or self._need_tokenizer().chat_template is None:
                return self._encode(prompt, special=True)
            return self.chat_ids([{"role": "user", "content": prompt}])
        if raw:
            raise ConfigError("raw=True is for text; token ids are always used as given")
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

    def chat_ids(self, messages: Messages) -> list[int]:
        """A conversation in the model's chat template. Raises PromptError."""
        tokenizer = self._need_tokenizer()
        if tokenizer.chat_template is None:
            raise PromptError(
                f"model {self.name!r} has no chat template; use generate with raw text"
            )
        if not messages:
            raise PromptError("no messages; give at least one {'role': 'user', 'content': ...}")
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise PromptError(f"message {message!r} needs 'role' and 'content'")
            if not isinstance(message["content"], str):
                raise PromptError(f"the content {message['content']!r} of a message must be text")
            if not message["content"].strip():
                raise PromptError(f"the {message['role']}'s message is empty")
        from jinja2 import TemplateError

        try:
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from None
        return self._encode(text, special=False)

    def infill_canvas(self, parts: Sequence[str | int]) -> Canvas:
        """A text with blanks as a canvas. Raises PromptError.

        A space before a blank belongs to the blank (tokens begin with their space); two spaces keep one.
        """
        if isinstance(parts, str) or not any(isinstance(part, Integral) for part in parts):
            raise PromptError("infill needs a list with at least one number of blank tokens")
        ids: list[int] = self._encode("", special=True)
        blanks = [False] * len(ids)
        for part, following in zip(parts, [*parts[1:], ""], strict=True):
            if isinstance(part, str):
                text = part.removesuffix(" ") if isinstance(following, Integral) else part
                new = self._encode(text, special=False)
                ids, blanks = ids + new, blanks + [False] * len(new)
            elif isinstance(part, bool) or not isinstance(part, Integral) or part < 1:
                raise PromptError(f"blank of {part!r} tokens: use a whole number, at least 1")
            else:
                ids, blanks = ids + [0] * int(part), blanks + [True] * int(part)
        if len(ids) > self.spec.max_length:
            raise PromptError(
                f"the text is {len(ids)} tokens long, the model's context {self.spec.max_length}"
            )
        return new_canvas(ids, blanks, blanks.index(True), self.spec.mask_id, infilling=True)

    def output(self, sequence: request_module.Sequence, return_trace: bool) -> Output:
        """The result of a finished sequence."""
        assert sequence.finish_reason is not None, "the sequence is not finished"
        canvas = sequence.canvas
        ids = canvas.tokens.tolist()
        answer = ids[canvas.prompt_length :]
        end = next((i for i, id_ in enumerate(answer) if id_ in self.stop_ids), len(answer))
        token_ids, text = answer[:end], self.decode(answer[:end])
        blanks: tuple[str, ...] = ()
        if canvas.infilling:
            token_ids = canvas.tokens[~canvas.fixed].tolist()
            text = self.decode(ids)
            blanks = tuple(self._blank_texts(canvas))
        return Output(
            text=text,
            token_ids=token_ids,
            canvas_ids=ids,
            prompt_length=canvas.prompt_length,
            num_forwards=sequence.num_forwards,
            num_queries=sequence.num_queries,
            num_logit_rows=sequence.num_logit_rows,
            finish_reason=sequence.finish_reason,
            cache_exact=sequence.request.cache.exact,
            trace=tuple(sequence.trace) if return_trace else None,
            blanks=blanks,
        )

    def _blank_texts(self, canvas: Canvas) -> Iterator[str]:
        run: list[int] = []
        for token, fixed in zip(canvas.tokens.tolist(), canvas.fixed.tolist(), strict=True):
            if not fixed:
                run.append(token)
            elif run:
                yield self.decode(run)
                run = []
        if run:
            yield self.decode(run)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise PromptError(f"model {self.name!r} has no tokenizer; give prompts as token ids")
        return self.tokenizer

    def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError(
                f"the text {text!r} holds half a character (a lone surrogate)"
            ) from None
        found = self._need_tokenizer()(text, add_special_tokens=special)["input_ids"]
        return [int(id_) for id_ in found]

    def _maker(
        self,
        decoder: str,
        cache: str,
        seed: int,
        stop_at_eos: bool,
        knobs: dict[str, Any],
        options: tuple[str, ...] = OPTIONS,
    ) -> Any:
        """A function from canvas to request; all names and values are checked here."""
        seed = whole("seed", seed)
        method, proposal = configure(decoder, knobs, options)
        if proposal.logits_eos_inf and self.vocabulary.eos_id is None:
            raise ConfigError(
                f"logits_eos_inf has no effect: the model's eos_token_id={self.spec.eos_id} is not in its "
                f"vocabulary of {self.spec.vocab_size}"
            )
        policy = make_cache(cache)

        def make(canvas: Canvas) -> Request:
            return Request(
                canvas=canvas,
                decoder=method,
                cache=policy,
                proposal=proposal,
                seed=seed,
                stop_ids=self.stop_ids,
                stop_at_eos=stop_at_eos,
                facts=self.facts,
            )

        return make

    def _events(self, requests: list[Request], max_batch_size: int) -> Iterator[Event]:
        sequences = [request_module.Sequence.begin(item, i) for i, item in enumerate(requests)]
        if not sequences:
            return
        rows = max(Runner.rows_of(sequence) for sequence in sequences)
        runner = Runner(
            self.model,
            self.vocabulary,
            max_rows=rows * min(max_batch_size, len(sequences)),
            max_slots=max(request.max_slots for request in requests),
            store=any(sequence.request.cache.stores for sequence in sequences),
        )
        yield from decode(sequences, runner)

    def _run(self, requests: list[Request], max_batch_size: int) -> list[request_module.Sequence]:
        finished: dict[int, request_module.Sequence] = {}
        for event in self._events(requests, max_batch_size):
            if event.sequence.finish_reason is not None:
                finished[event.sequence.index] = event.sequence
        return [finished[i] for i in range(len(requests))]
