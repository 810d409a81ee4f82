"""Requests for one model: the method bound to it, and everything about a canvas checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unmask.caches.base import AnyCache
from unmask.canvas import Canvas, Draft, Floats, ModelFacts, pin
from unmask.decoders.base.protocol import AnyDecoder
from unmask.engine.constrained import fit_draft
from unmask.engine.constraints import ConstraintCompiler
from unmask.engine.drafts import DraftRequest, check_draft, encode_draft, seeded, write_draft
from unmask.engine.knob_types import CacheName, DecoderName
from unmask.engine.prompts import Prompt, PromptEncoder
from unmask.engine.request import Request, row_seed
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError, SettingWarning, unknown_name
from unmask.grammar.constraint import TextConstraint
from unmask.grammar.reach import TokenAutomaton
from unmask.knobs import Source, check_flags, shorten, whole
from unmask.method import CACHE_PREFIX, DEFAULT_CACHE, DEFAULT_DECODER, MethodSpec
from unmask.models.spec import ModelSpec
from unmask.own_code import Reference
from unmask.sampling.token_frequencies import load_background

DRAFT_OPTIONS = ("draft", "pinned", "max_edits")
INFILL_OPTIONS = (
    "decoder",
    "preset",
    "cache",
    "cache_args",
    "seed",
    "return_trace",
    "trace_alternatives",
    "constraint",
    *DRAFT_OPTIONS,
    "adapter",
)
STREAM_OPTIONS = (
    "decoder",
    "preset",
    "cache",
    "cache_args",
    "seed",
    "stop_at_eos",
    "stop_token_ids",
    "trace_alternatives",
    "constraint",
    *DRAFT_OPTIONS,
    "adapter",
)
OPTIONS = (
    *INFILL_OPTIONS,
    "gen_length",
    "stop_at_eos",
    "stop_token_ids",
    "raw",
    "max_batch_size",
    "n",
)
"""Options of `generate` besides the knobs, like those of `infill` and `stream` above; listed in errors."""
DecoderLike = DecoderName | Reference | Path | MethodSpec | AnyDecoder | type[AnyDecoder]
"""A decoder by name, file, `name(knob=value)`, `module:Class`, class or object; or a whole method.

A text that is none of the names is a `Reference` for type checkers; any text will do when it runs."""
CacheLike = CacheName | Reference | Path | AnyCache | type[AnyCache]
"""A cache policy, in the same forms."""
Drafter = Callable[[Canvas], Draft]
"""A function that proposes tokens for a canvas: one token id per position, -1 for none."""


MAX_ALTERNATIVES = 20
"""Largest number of likeliest tokens that a trace keeps of each commit."""


def with_alternatives(
    requests: Sequence[Request], trace_alternatives: int, *, has_trace: bool = True
) -> list[Request]:
    """Return requests whose traces keep so many likeliest tokens of each commit.

    Raises ConfigError unless the number is 0 to 20, and for one above 0 without a trace.
    """
    count = whole("trace_alternatives", trace_alternatives, 0)
    if count > MAX_ALTERNATIVES:
        raise ConfigError(f"trace_alternatives={count} must be at most {MAX_ALTERNATIVES}")
    if count and not has_trace:
        raise ConfigError(
            f"trace_alternatives={count} has no effect without return_trace=True; add it, or leave it out"
        )
    return [replace(request, num_alternatives=count) for request in requests]


def parse_method(
    decoder: DecoderLike = DEFAULT_DECODER,
    cache: CacheLike = DEFAULT_CACHE,
    cache_args: Mapping[str, object] | None = None,
    knobs: Mapping[str, object] | None = None,
    *,
    gen_length: int | None = None,
    options: tuple[str, ...] = OPTIONS,
) -> MethodSpec:
    """Return the method of Python's keyword arguments; a `MethodSpec` is returned unchanged.

    Raises ConfigError for names and values that are not allowed, and for arguments beside a `MethodSpec`.
    """
    if cache_args is not None and not isinstance(cache_args, Mapping):
        raise ConfigError(f"cache_args={cache_args!r} must map the cache's knobs to values")
    if isinstance(decoder, MethodSpec):
        own = None if isinstance(cache, str) and cache == DEFAULT_CACHE else cache
        for key, value in {"cache": own, "cache_args": cache_args, **(knobs or {})}.items():
            if value is not None:
                raise ConfigError(
                    f"{key}={value!r} has no effect beside a MethodSpec, which has all knobs; leave it "
                    f"out, or use MethodSpec.with_values"
                )
        return decoder
    inside = {CACHE_PREFIX + key: value for key, value in (cache_args or {}).items()}
    values = {"decoder": decoder, "cache": cache, **(knobs or {})}
    return MethodSpec.parse(
        Source(values), Source(inside), gen_length=gen_length, options=options, is_trusted=True
    )


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """All parts of a request except its canvas."""

    method: MethodSpec
    seed: int
    stop_ids: frozenset[int]
    stop_at_eos: bool
    facts: ModelFacts
    given: Mapping[int, int] = field(default_factory=dict)
    """Given tokens of the answer, by offset from the prompt's end."""
    constraint: TokenAutomaton | None = None
    draft: DraftRequest | None = None
    adapter: str | None = None

    def __call__(self, canvas: Canvas, row: int = 0) -> Request:
        """Return the request for a canvas, `row` of a call: its seed is `row_seed(seed, row)`.

        Raises ConfigError if `given` or the draft in it does not fit the canvas or the method.
        """
        canvas = self._with_given(canvas) if self.given else canvas
        if self.draft is not None or canvas.drafted.any():
            check_draft(canvas, self.method.decoder)
        request = Request(
            canvas=canvas,
            method=self.method,
            seed=row_seed(self.seed, row),
            stop_ids=self.stop_ids,
            stop_at_eos=self.stop_at_eos,
            facts=self.facts,
            constraint=self.constraint,
            max_edits=None if self.draft is None else self.draft.max_edits,
            adapter=self.adapter,
        )
        return fit_draft(request)

    def _with_given(self, canvas: Canvas) -> Canvas:
        size, last = len(canvas) - canvas.prompt_length, max(self.given)
        if canvas.infilling:
            raise ConfigError(
                "constraints have no effect where blanks of a text are filled; write the given text "
                "between the blanks"
            )
        if last >= size:
            raise ConfigError(
                f"constraints: offset {last} is beyond the {size} generated positions; use 0 to "
                f"{size - 1}, or a larger gen_length"
            )
        tokens = {canvas.prompt_length + at: id_ for at, id_ in self.given.items()}
        for position, id_ in tokens.items():
            if not canvas.open[position] and canvas.tokens[position] != id_:
                raise ConfigError(
                    f"constraints and the draft have different tokens at offset "
                    f"{position - canvas.prompt_length}; leave one of them out"
                )
        given = pin(canvas, tokens)
        if given.fixed.all():
            raise ConfigError(
                f"constraints give all {size} positions; leave at least one of them to the model"
            )
        return given


class RequestBuilder:
    """Requests for one model.

    `make_drafter` loads a smaller model by name or folder for speculative decoding and returns its guesses;
    `drafters` has those of the models loaded so far, by name. `backgrounds` has the function
    `ModelFacts.background` of each adapter of the model, by name.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        facts: ModelFacts,
        stop_ids: frozenset[int],
        make_drafter: Callable[[str], Drafter],
        backgrounds: Mapping[str, Callable[[], Floats]],
    ) -> None:
        self.prompts, self.facts, self.stop_ids = prompts, facts, stop_ids
        self.backgrounds = backgrounds
        self._make_drafter = make_drafter
        self.drafters: dict[str, Drafter] = {}
        self.constraints = ConstraintCompiler(prompts.tokenizer, prompts.spec)

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        return self.prompts.spec

    def template(
        self,
        method: MethodSpec,
        *,
        seed: int = 0,
        stop_at_eos: bool = True,
        stop_token_ids: Iterable[int] = (),
        constraint: TextConstraint | None = None,
        draft: DraftRequest | None = None,
        adapter: str | None = None,
    ) -> RequestTemplate:
        """Bind a method to the model, and return a template of requests.

        `stop_token_ids` end an answer besides the model's own end tokens, or alone without `stop_at_eos`.
        Every answer meets `constraint`; `adapter` names an adapter of the model.
        `draft` is that of the canvases, which have its tokens already.
        Warns of values without effect. Raises ConfigError for a method that the model does not allow.
        """
        seed, method = whole("seed", seed), method.bind(self.spec.block_size)
        method.decoder.check_cache(stores=method.cache.stores)
        stops = self._stops(stop_token_ids)
        stop_ids = stops | self.stop_ids if stop_at_eos or not stops else stops
        stop_at_eos = stop_at_eos or bool(stops)
        for note in method.notes:
            if note.code == "no_effect":
                warnings.warn(note.message, SettingWarning, stacklevel=4)
        params = method.sampling_params
        if params.logits_eos_inf and not self.facts.end_ids - {self.facts.turn_end_id}:
            raise ConfigError(
                f"logits_eos_inf has no effect: the model's eos_token_id={self.spec.eos_id} is not in its "
                f"vocabulary of {self.spec.vocab_size}"
            )
        is_chosen = "drop_after_eos" not in method.adaptable
        if params.drop_after_eos and not stop_at_eos and not is_chosen:
            method = replace(method, sampling_params=replace(params, drop_after_eos=False))
        elif params.drop_after_eos and not stop_at_eos:
            raise ConfigError(
                "drop_after_eos=true has no effect where no end token ends the answer (stop_at_eos=false, "
                "ignore_eos=true, infilling); leave it out"
            )
        facts = replace(self.facts, adaptable=method.adaptable, end_ids=self.facts.end_ids | stops)
        if adapter is not None:
            facts = replace(facts, background=self._background_of(adapter))
        drafter = method.decoder.draft_model
        if drafter is not None:
            if drafter not in self.drafters:
                self.drafters[drafter] = self._make_drafter(drafter)
            facts = replace(facts, draft=self.drafters[drafter])
        given = self.given_tokens(method)
        automaton = None if constraint is None else self._compiled(constraint, method, stop_ids)
        return RequestTemplate(
            method, seed, stop_ids, stop_at_eos, facts, given, automaton, draft, adapter
        )

    def _background_of(self, adapter: str) -> Callable[[], Floats]:
        """Return the background frequencies of an adapter. Raises ConfigError for an unknown one."""
        if adapter not in self.backgrounds:
            raise unknown_name("adapter", adapter, self.backgrounds)
        return self.backgrounds[adapter]

    def _compiled(
        self, constraint: TextConstraint, method: MethodSpec, stop_ids: frozenset[int]
    ) -> TokenAutomaton:
        """Return the automaton of a constraint. Raises ConfigError where it cannot be obeyed."""
        params = method.sampling_params
        if params.vocabulary in ("frequency", "union"):
            raise ConfigError(
                f"vocabulary={params.vocabulary} leaves out tokens that the constraint may need; use "
                f"static, adaptive or none"
            ).about("vocabulary")
        turn_end = self.facts.turn_end_id
        only_turns = stop_ids & (frozenset() if turn_end is None else {turn_end})
        ends = only_turns if params.logits_eos_inf else stop_ids
        return self.constraints.automaton(constraint, ends)

    def _stops(self, ids: Iterable[int]) -> frozenset[int]:
        """Return the ids that can end an answer: those of tokens that the model may propose.

        Others, such as the ends of another model, change nothing. Raises ConfigError.
        """
        if isinstance(ids, str | Mapping) or not isinstance(ids, Iterable):
            raise ConfigError(f"stop_token_ids={shorten(ids)} must be a list of token ids")
        stops = frozenset(whole("stop_token_ids", id_, 0) for id_ in ids)
        return frozenset(
            id_ for id_ in stops if id_ < self.spec.vocab_size and id_ != self.spec.mask_id
        )

    def given_tokens(self, method: MethodSpec) -> dict[int, int]:
        """Return the given token of each offset of the answer. Raises ConfigError and PromptError."""
        given: dict[int, int] = {}
        pairs = method.sampling_params.constraints or ()
        if pairs and method.decoder.grows:
            raise ConfigError(
                f"constraints need an answer of constant length, but decoder {method.decoder_name!r} "
                f"lets it grow; use another decoder"
            )
        for offset, value in pairs:
            ids = self.prompts.encode(value, special=False) if isinstance(value, str) else [value]
            for at, id_ in enumerate(ids, start=offset):
                if not 0 <= id_ < self.spec.vocab_size or id_ == self.spec.mask_id:
                    what = "the mask" if id_ == self.spec.mask_id else "no token"
                    raise ConfigError(
                        f"constraints[{offset}]={shorten(value)}: id {id_} is {what}; use an id in "
                        f"0..{self.spec.vocab_size - 1}, or text"
                    )
                if at in given:
                    raise ConfigError(
                        f"constraints give offset {at} twice: the text before reaches as far; move "
                        f"offset {offset}"
                    )
                given[at] = id_
        return given

    def request(  # noqa: PLR0913 - the call's options are the interface
        self,
        content: Prompt | Canvas,
        method: MethodSpec,
        *,
        gen_length: int | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
        stop_token_ids: Iterable[int] = (),
        raw: bool = False,
        constraint: TextConstraint | None = None,
        draft: DraftRequest | None = None,
        adapter: str | None = None,
    ) -> Request:
        """Return a request, after all checks that are possible before the first forward.

        `content` is a prompt, or a canvas, which has its positions already. `draft` is written into its
        open positions. Raises PromptError and
        ConfigError.
        """
        check_flags(stop_at_eos=stop_at_eos, raw=raw)
        infills = isinstance(content, Canvas) and content.infilling
        template = self.template(
            method,
            seed=seed,
            stop_at_eos=stop_at_eos and not infills,
            stop_token_ids=() if infills else stop_token_ids,
            constraint=constraint,
            draft=draft,
            adapter=adapter,
        )
        if isinstance(content, Canvas):
            if gen_length is not None or raw:
                raise ConfigError(
                    f"gen_length={gen_length}, raw={raw} have no effect on a canvas; leave them out"
                )
            canvas = content if draft is None else seeded(self.prompts, content, draft)
        else:
            one = None if draft is None else draft.per_prompt(1)[0]
            canvas = self.canvas(content, template.method, gen_length, raw=raw, draft=one)
        frequencies = template.method.sampling_params.frequencies
        if frequencies is not None:
            load_background(frequencies, self.spec.vocab_size)
        request = template(canvas)
        SequenceState.begin(request)
        return request

    def rows(
        self,
        template: RequestTemplate,
        prompts: list[Prompt],
        gen_length: int | None,
        n: int,
        *,
        raw: bool = False,
    ) -> list[Request]:
        """Return `n` requests for each prompt, in order. Raises PromptError and ConfigError."""
        drafts: list[DraftRequest | None] = [None] * len(prompts)
        if template.draft is not None:
            drafts = template.draft.per_prompt(len(prompts))
        canvases = [
            self.canvas(prompt, template.method, gen_length, raw=raw, draft=draft)
            for prompt, draft in zip(prompts, drafts, strict=True)
        ]
        rows = [canvas for canvas in canvases for _ in range(n)]
        return [template(canvas, row) for row, canvas in enumerate(rows)]

    def canvas(
        self,
        prompt: Prompt,
        method: MethodSpec,
        gen_length: int | None,
        *,
        raw: bool = False,
        draft: DraftRequest | None = None,
    ) -> Canvas:
        """Return a prompt with the method's initial positions, the first ones those of a draft of it.

        With a draft, the default length is that of the draft. Raises PromptError and ConfigError.
        """
        option = method.decoder.length_knob
        length = method.first_length(gen_length)
        if draft is None:
            return self.prompts.prompt_canvas(prompt, length, raw=raw, option=option)
        tokens = encode_draft(self.prompts, draft)
        length = len(tokens.ids) if gen_length is None else length
        canvas = self.prompts.prompt_canvas(prompt, length, raw=raw, option=option)
        return write_draft(canvas, tokens, canvas.prompt_length, len(canvas))
