"""Plans: validated engine requests for the answers to one HTTP request."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unmask.canvas import Canvas
from unmask.engine.drafts import DraftRequest, encode_draft
from unmask.engine.prompts import Prompt, prompt_list
from unmask.engine.request import Request, row_seed
from unmask.engine.text_stream import StopCriteria
from unmask.errors import (
    ConfigError,
    ContradictionError,
    GrammarError,
    PromptError,
    UnmaskError,
)
from unmask.method import CACHE_PREFIX, GEN_LENGTH, MethodSpec, Source
from unmask.server.capabilities import SERVER_ONLY
from unmask.server.errors import ApiError, library_error
from unmask.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DecodingRequest,
    InfillRequest,
    Message,
    TemplateFields,
)
from unmask.server.request_parsing import check_knobs, check_method_text
from unmask.server.settings import ServerSettings
from unmask.server.structured_fields import ConstraintField, constraint_of

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

DEFAULT_FIRST_LENGTH = 64
"""Initial number of positions for a decoder that chooses the length; at most `max_tokens`."""
MAX_SUSPECTS = 64
"""Largest number of knobs of a request that are tried one by one to name the one that is refused."""


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One answer to decode.

    `index`: of the choice; `prompt`: index of its prompt, which has `num_prompt` tokens. The text is that
    of `size` positions (None: all) from `start` on, until one of `ends`. `num_top`: likeliest tokens to
    return with each token. With `keeps_reading`, the answer has the last reading of its canvas, in place of
    the tokens' log-probabilities.
    """

    index: int
    prompt: int
    request: Request
    num_prompt: int
    ends: StopCriteria
    start: int
    size: int | None = None
    num_top: int = 0
    keeps_reading: bool = False


def knob_at_fault(*sources: Source) -> str | None:
    """Return the first knob without which sources that are refused make a method, as its source spells it.

    None if there is no such knob, or if there are more than `MAX_SUSPECTS` of them.
    """
    suspects = [(i, key) for i, source in enumerate(sources) for key in source.values]
    for i, key in suspects if len(suspects) <= MAX_SUSPECTS else []:
        rest = {name: value for name, value in sources[i].values.items() if name != key}
        try:
            MethodSpec.parse(*sources[:i], replace(sources[i], values=rest), *sources[i + 1 :])
        except UnmaskError:
            continue
        return sources[i].spelling.format(key=key.removeprefix(CACHE_PREFIX), flag=key)
    return None


class Planner:
    """Plans for one model. All methods raise ApiError for what the model or the method refuses.

    `max_choices`: maximum number of choices of a request, the size of the engine's queue (None: no limit).
    """

    def __init__(self, llm: LLM, settings: ServerSettings, max_choices: int | None = None) -> None:
        self.llm, self.settings, self.max_choices = llm, settings, max_choices
        own = llm.spec.max_length
        self.max_length = min(own, settings.limits.max_model_len or own)

    def chat(self, body: ChatRequest, knobs: Mapping[str, object]) -> list[GenerationPlan]:
        """Plan the next turn of a conversation."""
        self._check_tools(body)
        ids = self.conversation_ids(body.messages, body)
        if body.add_special_tokens:
            ids = self.llm.prompts.with_begin(ids)
        return self.continuations(body, [ids], knobs, "messages")

    def _check_tools(self, body: ChatRequest) -> None:
        """Raise ApiError for tools that the model may choose but cannot read of."""
        if not body.offered_tools or body.forced_tools:
            return
        template = self.llm.prompts.chat.template()
        if template is not None and "tools" not in template:
            raise ApiError(
                400,
                "the model's chat template does not read tools, so it cannot choose one; use "
                'tool_choice="required" or name a function, or leave tools out',
                param="tools",
                code="unsupported_parameter",
            )

    def conversation_ids(self, turns: Sequence[Message], fields: TemplateFields) -> list[int]:
        """Return the token ids of a conversation in the chat template."""
        messages = [turn.as_mapping() for turn in turns]
        try:
            return self.llm.chat_ids(messages, **fields.template_options)
        except PromptError as error:
            raise library_error(error, "messages") from None
        except ConfigError as error:
            raise library_error(error) from None

    def completion(
        self, body: CompletionRequest, knobs: Mapping[str, object]
    ) -> list[GenerationPlan]:
        """Plan continuations of texts, or their middles."""
        prompts = prompt_list(body.prompt)
        self.check_choices(body, len(prompts))
        try:
            if body.suffix:
                return self._middles(body, prompts, knobs)
            ids = [self._text_ids(one, body.add_special_tokens) for one in prompts]
        except PromptError as error:
            raise library_error(error, "prompt") from None
        return self.continuations(body, ids, knobs, "prompt")

    def _text_ids(self, prompt: Prompt, add_special: bool | None) -> list[int]:
        """Return the token ids of a prompt without a template."""
        prompts = self.llm.prompts
        if add_special is False and isinstance(prompt, str):
            return prompts.bare_ids(prompt)
        return prompts.prompt_ids(prompt, raw=isinstance(prompt, str))

    def infill(self, body: InfillRequest, knobs: Mapping[str, object]) -> list[GenerationPlan]:
        """Plan the blanks of a text."""
        try:
            canvas = self.llm.infill_canvas(body.parts)
        except PromptError as error:
            raise library_error(error, "parts") from None
        self._check_room(len(canvas), "the text", "parts")
        return self._plans(body, [canvas], [0], knobs, [body.draft_request])

    def continuations(
        self,
        body: DecodingRequest,
        prompts: list[list[int]],
        knobs: Mapping[str, object],
        param: str,
    ) -> list[GenerationPlan]:
        """Plan continuations of prompts, of the field `param`."""
        self.check_choices(body, len(prompts))
        method, seed = self.method(body, knobs), _seed_of(body)
        plans: list[GenerationPlan] = []
        for ids, draft in zip(prompts, self._drafts(body, len(prompts)), strict=True):
            length = self._length(len(ids), body, param, self._draft_length(draft, body))
            span, option = (len(ids), None), None if method.chooses_length else length
            spans = (len(ids), *span)
            plans += self._copies(body, method, seed, ids, spans, len(plans), option, draft)
        return plans

    def _drafts(self, body: DecodingRequest, count: int) -> list[DraftRequest | None]:
        """Return the draft of each prompt."""
        draft = body.draft_request
        try:
            return [None] * count if draft is None else draft.per_prompt(count)
        except ConfigError as error:
            raise library_error(error, body.draft_field(error.key or "draft")) from None

    def _draft_length(self, draft: DraftRequest | None, body: DecodingRequest) -> int | None:
        """Return the number of a draft's tokens, None without one."""
        if draft is None:
            return None
        try:
            return len(encode_draft(self.llm.prompts, draft).ids)
        except ConfigError as error:
            raise library_error(error, body.draft_field(error.key or "draft")) from None
        except PromptError as error:
            raise library_error(error, body.draft_field("draft")) from None

    def check_choices(self, body: DecodingRequest, num_prompts: int) -> None:
        """Raise ApiError for more choices than the queue holds, before any of them is planned."""
        count = num_prompts * body.choices
        if self.max_choices is not None and count > self.max_choices:
            raise ApiError(
                400,
                f"{count} answers in one request: the queue holds at most {self.max_choices}; send fewer "
                f"prompts, or a smaller n",
                code="request_too_large",
            )

    def _middles(
        self, body: CompletionRequest, prompts: list[Prompt], knobs: Mapping[str, object]
    ) -> list[GenerationPlan]:
        assert body.suffix is not None, "without a suffix there is no middle"
        special = body.add_special_tokens is not False
        drafts = self._drafts(body, len(prompts))
        sizes = [body.length or self._draft_length(draft, body) for draft in drafts]
        canvases = [
            self._middle(one, body.suffix, size, special)
            for one, size in zip(prompts, sizes, strict=True)
        ]
        for canvas, draft in zip(canvases, drafts, strict=True):
            has_length = body.length is not None or draft is None
            param = body.length_name if has_length else body.draft_field("draft")
            self._check_room(len(canvas), "prompt, answer and suffix", param)
        starts = [canvas.prompt_length for canvas in canvases]
        return self._plans(body, canvases, starts, knobs, drafts, has_size=True)

    def _middle(self, prompt: Prompt, suffix: str, size: int | None, special: bool) -> Canvas:
        """Return the canvas of a middle of `size` positions; None: the default, or what is left."""
        if size is None:
            size = 1 + self.max_length - len(self._middle(prompt, suffix, 1, special))
            size = max(1, min(GEN_LENGTH, size))
        return self.llm.middle_canvas(prompt, size, suffix, special=special)

    def _plans(
        self,
        body: DecodingRequest,
        canvases: list[Canvas],
        starts: list[int],
        knobs: Mapping[str, object],
        drafts: list[DraftRequest | None],
        *,
        has_size: bool = False,
    ) -> list[GenerationPlan]:
        """Plan the open positions of canvases; with `has_size` the text is that of these alone."""
        method, seed = self.method(body, knobs), _seed_of(body)
        plans: list[GenerationPlan] = []
        for canvas, start, draft in zip(canvases, starts, drafts, strict=True):
            num_prompt = int(canvas.fixed.sum())
            span = (num_prompt, start, canvas.num_open if has_size else None)
            plans += self._copies(body, method, seed, canvas, span, len(plans), draft=draft)
        return plans

    def _copies(
        self,
        body: DecodingRequest,
        method: MethodSpec,
        seed: int,
        content: list[int] | Canvas,
        span: tuple[int, int, int | None],
        first: int,
        gen_length: int | None = None,
        draft: DraftRequest | None = None,
    ) -> list[GenerationPlan]:
        """Plan the `n` answers to one prompt, which differ by their seeds alone.

        Choice i of the request has `seed` + i, like row i of `LLM.generate`; `first` is i of the first.
        `span`: tokens of the prompt, first position of the text, and the number of its positions.
        """
        infills = isinstance(content, Canvas) and content.infilling
        given = frozenset(body.stop_token_ids or ())
        stop_ids = given if body.ignore_eos or infills else given | self.llm.stop_ids
        ends = StopCriteria(stop_ids, body.stops)
        num_prompt, start, size = span
        field = constraint_of(body)
        self._check_named(body)
        try:
            request = self.llm.requests.request(
                content,
                method,
                gen_length=gen_length,
                seed=seed,
                stop_at_eos=not body.ignore_eos,
                stop_token_ids=given,
                constraint=None if field is None else field.constraint,
                draft=draft,
                adapter=self._adapter(body.model),
            )
        except UnmaskError as error:
            raise library_error(error, field_at_fault(error, body, field)) from None
        self._check_room(request.max_positions, "the canvas", body.length_name)
        num_top = min(body.num_top, self.llm.spec.vocab_size)
        return [
            GenerationPlan(
                index=first + copy,
                prompt=first // body.choices,
                request=replace(
                    request,
                    seed=row_seed(seed, first + copy),
                    num_top=num_to_read(body, request, num_top),
                    named=body.named,
                    num_alternatives=body.trace_alternatives,
                ),
                num_prompt=num_prompt,
                ends=ends,
                start=start,
                size=size,
                num_top=num_top,
            )
            for copy in range(body.choices)
        ]

    def _check_named(self, body: DecodingRequest) -> None:
        """Raise ApiError for token ids that the vocabulary does not have."""
        size = self.llm.spec.vocab_size
        if any(id_ >= size for id_ in body.named):
            raise ApiError(
                400,
                f"logprob_token_ids has {max(body.named)}; the vocabulary has the ids 0 to {size - 1}",
                param="logprob_token_ids",
                code="invalid_value",
            )

    def _adapter(self, model: str | None) -> str | None:
        """Return the adapter that a body's model names; None for the model itself."""
        bank = self.llm.adapters
        return model if bank is not None and model in bank.names else None

    def method(self, body: DecodingRequest, top: Mapping[str, object]) -> MethodSpec:
        """Return the method of a body, its knobs at the `top` level, and the server's defaults."""
        decoder_args, cache_args = body.decoder_args or {}, body.cache_args or {}
        names = {"decoder": body.decoder, "cache": body.cache, "preset": body.preset}
        for values in (top, decoder_args, cache_args):
            check_knobs(values)
        for param, text in names.items():
            check_method_text(param, text or "")
        for key in ("decoder", "cache", "preset"):
            if key in decoder_args:
                raise ApiError(
                    400,
                    f"decoder_args.{key} is no knob; use the field {key}",
                    param=f"decoder_args.{key}",
                    code="invalid_value",
                )
        sources = (
            Source(top),
            Source(decoder_args, spelling="decoder_args.{key}"),
            Source(
                {CACHE_PREFIX + key: value for key, value in cache_args.items()},
                spelling="cache_args.{key}",
            ),
            Source(own_knobs(body) | {k: text for k, text in names.items() if text is not None}),
        )
        try:
            method = MethodSpec.parse(*sources, *self._defaults(body))
        except UnmaskError as error:
            knob = error.key if isinstance(error, ConfigError) else None
            knob = knob or knob_at_fault(*sources, *self._defaults(body))
            if knob in SERVER_ONLY and knob not in self.settings.defaults.given:
                raise server_only(knob) from None
            raise library_error(error, knob) from None
        for note in method.notes:
            if note.code == "no_effect":
                raise ApiError(400, note.message, param=note.key, code="unsupported_parameter")
        self._check_server_only(method)
        most = method.given.get("max_gen_length")
        if method.chooses_length and body.length is not None and most != body.length:
            first, second = f"{body.length_name}={body.length}", f"max_gen_length={most}"
            raise library_error(ContradictionError(body.length_name, first, second))
        return method

    def _defaults(self, body: DecodingRequest) -> tuple[Source, ...]:
        """Return the server's defaults; `max_tokens` bounds a decoder that chooses the length."""
        own = self.settings.defaults.source(is_default=True, is_adaptable=True)
        if body.length is None:
            return (own,)
        first = min(DEFAULT_FIRST_LENGTH, body.length)
        bounds = {"max_gen_length": body.length, "initial_gen_length": first}
        return own, Source(bounds, is_default=True, is_soft=True)

    def _check_server_only(self, method: MethodSpec) -> None:
        """Refuse knobs that would read a file or load a model of the server's machine."""
        for key, harmless in SERVER_ONLY.items():
            value = method.given.get(key, harmless)
            if value not in (harmless, self.settings.defaults.given.get(key, harmless)):
                raise server_only(key)

    def _length(
        self, num_prompt: int, body: DecodingRequest, param: str, num_draft: int | None
    ) -> int:
        """Return the positions to generate after a prompt, of the field `param`.

        The default is the length of a draft, or 128.
        """
        room, name = self.max_length - num_prompt, body.length_name
        least = 1 if num_draft is None else num_draft
        least = least if body.length is None else body.length
        what, shorter = f"{name}={least}", f"use {name}={room} or less"
        if body.length is None and num_draft is not None:
            name = body.draft_field("draft")
            what, shorter = f"a draft of {num_draft}", f"use a draft of {room} tokens or less"
        if least > room:
            raise ApiError(
                400,
                f"prompt of {num_prompt} tokens + {what} = {num_prompt + least}, but the context is "
                f"{self.max_length}; {shorter if room > 0 else 'shorten the prompt'}",
                param=name if room > 0 else param,
                code="context_length_exceeded",
            )
        if body.length is None and num_draft is None:
            return min(GEN_LENGTH, room)
        return least

    def _check_room(self, size: int, what: str, param: str) -> None:
        """Raise ApiError for a canvas that is longer than the context."""
        if size > self.max_length:
            raise ApiError(
                400,
                f"{what} takes {size} positions, but the context is {self.max_length}; use less",
                param=param,
                code="context_length_exceeded",
            )


def field_at_fault(
    error: UnmaskError, body: DecodingRequest, field: ConstraintField | None
) -> str | None:
    """Return the field of the client that an error of a request refers to, None if it is not known.

    A length that the client did not choose is that of its draft, or too short for its constraint.
    """
    key = error.key if isinstance(error, ConfigError) else None
    if key in ("draft", "pinned", "max_edits"):
        return body.draft_field(key)
    if key == "gen_length":
        if body.length is not None or isinstance(body, InfillRequest):
            return body.length_name
        if body.draft_request is not None:
            return body.draft_field("draft")
    is_grammar = key == "gen_length" or (
        key in (None, "constraint") and isinstance(error, GrammarError)
    )
    return field.param if is_grammar and field is not None else key


def num_to_read(body: DecodingRequest, request: Request, num_top: int) -> int:
    """Return the number of likeliest tokens to read for a reply with `num_top` of them.

    A replaced token has its probability in the reading, which comes with the likeliest tokens alone.
    """
    has_numbers = body.wants_logprobs or body.return_step_map or body.wants_canvas
    return max(num_top, int(has_numbers and request.decoder.core.revises))


def _seed_of(body: DecodingRequest) -> int:
    return secrets.randbits(31) if body.seed is None else body.seed


def own_knobs(body: DecodingRequest) -> dict[str, object]:
    """Return the knobs that have a field of their own."""
    values = {
        "steps": body.steps,
        "block_length": body.block_length,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
    }
    return {key: value for key, value in values.items() if value is not None}


def server_only(key: str) -> ApiError:
    """Return the error for a knob that requests may not set."""
    message = (
        f"{key} names a file or a model on the server's machine; it is set when the server starts, "
        f"not by requests"
    )
    return ApiError(400, message, param=key, code="unsupported_parameter")
