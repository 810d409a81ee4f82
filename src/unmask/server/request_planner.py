"""From a checked body to the sequences that the engine is to decode, everything in them checked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask import decoders
from unmask.canvas import Canvas
from unmask.engine.request import Request
from unmask.engine.request_builder import PREFIX
from unmask.errors import PromptError, UnmaskError
from unmask.server.capabilities import SERVER_ONLY
from unmask.server.detokenizer import StopCriteria
from unmask.server.errors import ApiError, bad_request
from unmask.server.protocol import ChatRequest, CompletionRequest, DecodingRequest, InfillRequest
from unmask.server.request_parsing import check_knobs, check_method_text
from unmask.server.settings import ServerSettings

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

DEFAULT_MAX_TOKENS = 128
NEUTRAL_TOP_K = (-1, 0)
SAMPLING_ONLY = ("top_p", "top_k")


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """One answer to be decoded.

    `index` of the choice; `prompt`: the number of the prompt that it answers; `num_prompt` tokens that are
    given; the text is that of the positions from `start` on, `size` of them (None: all), up to what `ends`
    it.
    """

    index: int
    prompt: int
    request: Request
    num_prompt: int
    ends: StopCriteria
    start: int
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How to decode: names, and knobs still as they were sent."""

    decoder: str
    knobs: dict[str, Any]
    cache: str
    cache_args: dict[str, Any]
    finds_length: bool


class Planner:
    """Makes plans for one model. All methods raise ApiError for what the model or the method refuses."""

    def __init__(self, llm: LLM, settings: ServerSettings) -> None:
        self.llm, self.settings = llm, settings
        own = llm.spec.max_length
        self.max_length = min(own, settings.limits.max_model_len or own)

    def chat(self, body: ChatRequest, knobs: Mapping[str, Any]) -> list[GenerationPlan]:
        """The next turn of a conversation."""
        roles = {"developer": "system"}
        messages = [
            {"role": roles.get(turn.role, turn.role), "content": turn.text}
            for turn in body.messages
        ]
        try:
            ids = self.llm.chat_ids(messages)
        except PromptError as error:
            raise bad_request(error, "messages") from None
        return self.continuations(body, [ids], knobs, "messages")

    def completion(self, body: CompletionRequest, knobs: Mapping[str, Any]) -> list[GenerationPlan]:
        """Texts that go on, or whose middle is filled in."""
        prompts: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if isinstance(prompts[0], int):
            prompts = [prompts]
        try:
            if body.suffix:
                return self._middles(body, prompts, knobs)
            ids = [self.llm.prompt_ids(one, raw=isinstance(one, str)) for one in prompts]
        except PromptError as error:
            raise bad_request(error, "prompt") from None
        return self.continuations(body, ids, knobs, "prompt")

    def infill(self, body: InfillRequest, knobs: Mapping[str, Any]) -> list[GenerationPlan]:
        """A text with blanks."""
        try:
            canvas = self.llm.infill_canvas(body.parts)
        except PromptError as error:
            raise bad_request(error, "parts") from None
        self._check_room(len(canvas), "the text", "parts")
        return self._plans(body, [canvas], [0], None, knobs)

    def continuations(
        self, body: DecodingRequest, prompts: list[list[int]], knobs: Mapping[str, Any], param: str
    ) -> list[GenerationPlan]:
        """Answers behind prompts, which the field `param` has."""
        way = self.way(body, knobs)
        plans: list[GenerationPlan] = []
        for ids in prompts:
            length = self._length(len(ids), body, param)
            option: dict[str, Any] = {"gen_length": length}
            if way.finds_length:
                option = self._found_length(way, body)
            plans += self._copies(body, way, ids, len(ids), (len(ids), None), option, len(plans))
        return plans

    def _middles(
        self, body: CompletionRequest, prompts: list[Any], knobs: Mapping[str, Any]
    ) -> list[GenerationPlan]:
        assert body.suffix is not None, "without a suffix there is no middle"
        size = body.length or DEFAULT_MAX_TOKENS
        canvases = [self.llm.middle_canvas(one, size, body.suffix) for one in prompts]
        for canvas in canvases:
            self._check_room(len(canvas), "prompt, answer and suffix", body.length_name)
        starts = [canvas.prompt_length for canvas in canvases]
        return self._plans(body, canvases, starts, size, knobs)

    def _plans(
        self,
        body: DecodingRequest,
        canvases: list[Canvas],
        starts: list[int],
        size: int | None,
        knobs: Mapping[str, Any],
    ) -> list[GenerationPlan]:
        way = self.way(body, knobs)
        plans: list[GenerationPlan] = []
        for canvas, start in zip(canvases, starts, strict=True):
            given = int(canvas.fixed.sum())
            plans += self._copies(body, way, canvas, given, (start, size), {}, len(plans))
        return plans

    def _copies(
        self,
        body: DecodingRequest,
        way: Way,
        what: list[int] | Canvas,
        num_prompt: int,
        span: tuple[int, int | None],
        option: Mapping[str, Any],
        first: int,
    ) -> list[GenerationPlan]:
        """The `n` answers to one prompt; their seeds follow each other."""
        seed = secrets.randbits(31) if body.seed is None else body.seed
        infills = isinstance(what, Canvas) and what.infilling
        stop_ids = frozenset[int]() if body.ignore_eos or infills else self.llm.stop_ids
        ends = StopCriteria(stop_ids, body.stops)
        plans = []
        for copy in range(body.choices):
            try:
                request = self.llm.request(
                    what,
                    way.decoder,
                    way.cache,
                    cache_args=way.cache_args,
                    seed=seed + copy,
                    stop_at_eos=not body.ignore_eos,
                    **{**way.knobs, **option},
                )
            except UnmaskError as error:
                raise bad_request(error) from None
            self._check_room(request.max_positions, "the canvas", body.length_name)
            plans.append(
                GenerationPlan(
                    first + copy, first // body.choices, request, num_prompt, ends, *span
                )
            )
        return plans

    def way(self, body: DecodingRequest, top: Mapping[str, Any]) -> Way:
        """The method that a body and the server's defaults come to."""
        defaults = self.settings.defaults
        for values in (top, body.decoder_args or {}, body.cache_args or {}):
            check_knobs(values)
        for param, text in (
            ("decoder", body.decoder),
            ("cache", body.cache),
            ("preset", body.preset),
        ):
            check_method_text(param, text or "")
        given = merged(
            ("", top),
            ("decoder_args.", body.decoder_args or {}),
            ("", own_knobs(body)),
        )
        decoder = body.decoder
        if decoder is None:
            decoder = defaults.decoder if body.preset is None else "vanilla"
            if body.preset is None:
                given = {**standing(defaults.knobs, given), **given}
        cache_args = dict(body.cache_args or {})
        if body.cache is None:
            kept = {k: v for k, v in defaults.cache_args.items() if PREFIX + k not in given}
            cache_args = {**kept, **cache_args}
        inside = {k: v for k, v in given.items() if not k.startswith(PREFIX)}
        try:
            name, resolved, said = decoders.resolve(decoder, dict(inside))
        except UnmaskError as error:
            raise bad_request(error, "decoder") from None
        if said is not None and "no effect" in said:
            raise ApiError(400, said, param="steps", code="unsupported_parameter")
        self._check_server_only(resolved)
        cache = defaults.cache if body.cache is None else body.cache
        return Way(decoder, given, cache, cache_args, decoders.finds_length(name))

    def _check_server_only(self, knobs: Mapping[str, Any]) -> None:
        """Refuse knobs that would read a file or load a model of the server's machine."""
        for key, harmless in SERVER_ONLY.items():
            value = knobs.get(key, harmless)
            if value not in (harmless, self.settings.defaults.knobs.get(key, harmless)):
                raise ApiError(
                    400,
                    f"{key} names a file or a model on the server's machine; only who starts the server "
                    f"sets it",
                    param=key,
                    code="unsupported_parameter",
                )

    def _length(self, num_prompt: int, body: DecodingRequest, param: str) -> int:
        """Positions to generate behind a prompt, which the field `param` has."""
        room, asked, name = self.max_length - num_prompt, body.length, body.length_name
        wanted = 1 if asked is None else asked
        if wanted > room:
            advice = f"use {name}={room} or less" if room > 0 else "shorten the prompt"
            raise ApiError(
                400,
                f"prompt of {num_prompt} tokens + {name}={wanted} = {num_prompt + wanted}, but the "
                f"context is {self.max_length}; {advice}",
                param=name if room > 0 else param,
                code="context_length_exceeded",
            )
        return min(DEFAULT_MAX_TOKENS, room) if asked is None else asked

    def _found_length(self, way: Way, body: DecodingRequest) -> dict[str, Any]:
        """The bounds of a decoder that finds the length itself: `max_tokens` is its most."""
        bounds: dict[str, Any] = {}
        asked = body.length
        if asked is not None and "max_gen_length" not in way.knobs:
            bounds["max_gen_length"] = asked
            if "initial_gen_length" not in way.knobs:
                bounds["initial_gen_length"] = min(64, asked)
        elif asked is not None and way.knobs["max_gen_length"] != asked:
            raise ApiError(
                400,
                f"{body.length_name}={asked} and max_gen_length={way.knobs['max_gen_length']} "
                f"contradict; give one of them",
                param=body.length_name,
                code="invalid_value",
            )
        return bounds

    def _check_room(self, size: int, what: str, param: str) -> None:
        if size > self.max_length:
            raise ApiError(
                400,
                f"{what} takes {size} positions, but the context is {self.max_length}; use less",
                param=param,
                code="context_length_exceeded",
            )


def own_knobs(body: DecodingRequest) -> dict[str, Any]:
    """The knobs that have a field of their own; values that change nothing are left out."""
    found = {
        "steps": body.steps,
        "block_length": body.block_length,
        "temperature": body.temperature,
        "top_p": None if body.top_p == 1 else body.top_p,
        "top_k": None if body.top_k in NEUTRAL_TOP_K else body.top_k,
        "preset": body.preset,
    }
    return {key: value for key, value in found.items() if value is not None}


def standing(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The server's knobs that stand beside a request's own: of a greedy one not those of sampling."""
    is_greedy = given.get("temperature") == 0
    return {k: v for k, v in defaults.items() if not (is_greedy and k in SAMPLING_ONLY)}


def merged(*sources: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Several maps in one. Raises ApiError where two give a key different values."""
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    for prefix, values in sources:
        for key, value in values.items():
            if key in found and found[key] != value:
                raise ApiError(
                    400,
                    f"{where[key]}={found[key]!r} and {prefix}{key}={value!r} contradict; give one",
                    param=key,
                    code="invalid_value",
                )
            found[key], where[key] = value, prefix + key
    return found
