"""The options of a call: names, values and prompts, checked before anything runs."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask import decoders
from unmask.caches.base import AnyCache
from unmask.caches.registry import make_cache
from unmask.canvas import Canvas, Ints, ModelFacts
from unmask.decoders.base.protocol import AnyDecoder
from unmask.engine.prompts import Prompt, Prompts
from unmask.engine.request import Request
from unmask.engine.sequence import SequenceState
from unmask.errors import ConfigError, SettingWarning, unknown_name
from unmask.knobs import field_names, set_field, whole
from unmask.models.transformer import Transformer
from unmask.sampling.params import SamplingParams
from unmask.sampling.sampler import Vocabulary
from unmask.sampling.token_frequencies import load_background

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

PREFIX = "cache."
INFILL_OPTIONS = ("decoder", "preset", "cache", "cache_args", "seed", "return_trace")
STREAM_OPTIONS = ("decoder", "preset", "cache", "cache_args", "seed", "stop_at_eos")
OPTIONS = (*INFILL_OPTIONS, "gen_length", "stop_at_eos", "raw", "max_batch_size")
"""Options of `infill`, `stream` and `generate` beside the knobs of the proposal and of the decoder."""


def flags(**flags: Any) -> None:
    """Raise ConfigError for a flag that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be True or False")


def split_cache(
    name: str, args: Mapping[str, Any] | None, knobs: dict[str, Any], block_size: int | None
) -> tuple[dict[str, Any], AnyCache]:
    """The knobs that are the decoder's, and the cache of the others (`cache.kp`) and `args`.

    Raises ConfigError.
    """
    if args is not None and not isinstance(args, Mapping):
        raise ConfigError(f"cache_args={args!r} must map the cache's knobs to values")
    inside = dict(args or {})
    for key in [key for key in knobs if key.startswith(PREFIX)]:
        own = key.removeprefix(PREFIX)
        if own in inside and str(inside[own]) != str(knobs[key]):
            raise ConfigError(f"{key}={knobs[key]} and {own}={inside[own]} contradict; give one")
        inside[own] = knobs[key]
    rest = {key: value for key, value in knobs.items() if not key.startswith(PREFIX)}
    return rest, make_cache(name, inside, block_size, knobs.get("compat"))


@dataclass(frozen=True, slots=True)
class Method:
    """A decoder, how it proposes, and what was changed on the way from what was written (or None)."""

    decoder: AnyDecoder
    sampling_params: SamplingParams
    said: str | None


def configure(decoder: str, knobs: dict[str, Any], options: tuple[str, ...] = OPTIONS) -> Method:
    """The method of one set of knobs. Raises ConfigError for a name that nothing of it has.

    `options` are further names that the caller takes, for the error's listing.
    """
    shared = field_names(SamplingParams)
    decoder, knobs, said = decoders.resolve(decoder, knobs)
    own = decoders.knob_names(decoder, knobs)
    for key in knobs:
        if key not in shared and key not in own:
            raise _unknown_knob(decoder, key, {*shared, *own, *options} - {key})
    sampling_params = {k: set_field(SamplingParams, k, v) for k, v in knobs.items() if k in shared}
    method = decoders.make_decoder(decoder, {k: v for k, v in knobs.items() if k in own})
    made = SamplingParams(**sampling_params)
    method.check_sampling(made)
    return Method(method, made, said)


def _unknown_knob(decoder: str, key: str, allowed: set[str]) -> ConfigError:
    owners: dict[str, list[str]] = {}
    for other in decoders.names():
        for name in field_names(decoders.decoder_class(other)) - allowed:
            owners.setdefault(name, []).append(other)
    near = difflib.get_close_matches(key, sorted([*allowed, *owners]), n=1)
    owner = ""
    if near and near[0] in owners:
        owner = f"{near[0]!r} is a knob of decoder {', '.join(owners[near[0]])}; "
    return unknown_name(f"knob for decoder {decoder!r}:", key, allowed, owner)


GEN_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Maker:
    """Everything of a request but its canvas."""

    method: Method
    cache: AnyCache
    seed: int
    stop_ids: frozenset[int]
    stop_at_eos: bool
    facts: ModelFacts

    def __call__(self, canvas: Canvas) -> Request:
        """The request of a canvas."""
        return Request(
            canvas=canvas,
            decoder=self.method.decoder,
            cache=self.cache,
            sampling_params=self.method.sampling_params,
            seed=self.seed,
            stop_ids=self.stop_ids,
            stop_at_eos=self.stop_at_eos,
            facts=self.facts,
        )


class Requests(Prompts):
    """What makes requests for one model."""

    model: Transformer
    vocabulary: Vocabulary
    facts: ModelFacts
    stop_ids: frozenset[int]
    _drafters: dict[str, LLM]

    def request(
        self,
        what: Prompt | Canvas,
        decoder: str = "vanilla",
        cache: str = "none",
        *,
        cache_args: Mapping[str, Any] | None = None,
        gen_length: int | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
        raw: bool = False,
        **knobs: Any,
    ) -> Request:
        """One sequence for an engine to decode (`engine.service`); options as `LLM.generate` takes them.

        `what` is a prompt, or a canvas (`prompt_canvas`, `infill_canvas`), whose positions are there
        already. Everything that can be wrong with it is found here, in the caller's thread: raises
        PromptError and ConfigError.
        """
        flags(stop_at_eos=stop_at_eos, raw=raw)
        given = isinstance(what, Canvas)
        options = STREAM_OPTIONS if given else OPTIONS
        ends = stop_at_eos and not (isinstance(what, Canvas) and what.infilling)
        make = self._maker(decoder, (cache, cache_args), seed, ends, knobs, options)
        if isinstance(what, Canvas):
            if gen_length is not None or raw:
                raise ConfigError(
                    f"gen_length={gen_length}, raw={raw} have no effect on a canvas, which has them; "
                    f"leave them out"
                )
            canvas = what
        else:
            length = self.first_length(make.method.decoder, gen_length)
            option = make.method.decoder.length_knob
            canvas = self.prompt_canvas(what, length, raw=raw, option=option)
        if make.method.sampling_params.frequencies is not None:
            load_background(make.method.sampling_params.frequencies, self.spec.vocab_size)
        made = make(canvas)
        SequenceState.begin(made)
        return made

    @staticmethod
    def first_length(decoder: AnyDecoder, asked: int | None) -> int:
        """Return the number of initial positions; ConfigError when a decoder that finds it is told one."""
        if decoder.chooses_length:
            if asked is not None:
                raise ConfigError(
                    f"gen_length={asked} has no effect: the decoder finds the length; use "
                    f"initial_gen_length and max_gen_length"
                )
            return decoder.first_length()
        return GEN_LENGTH if asked is None else asked

    def _maker(
        self,
        decoder: str,
        cache: tuple[str, Mapping[str, Any] | None],
        seed: int,
        stop_at_eos: bool,
        knobs: dict[str, Any],
        options: tuple[str, ...] = OPTIONS,
    ) -> Maker:
        """What turns canvases into requests; all names and values are checked here."""
        seed = whole("seed", seed)
        knobs, policy = split_cache(cache[0], cache[1], knobs, self.spec.block_size)
        method = configure(decoder, knobs, options)
        if method.said is not None and "no effect" in method.said:
            warnings.warn(method.said, SettingWarning, stacklevel=3)
        if method.sampling_params.logits_eos_inf and self.vocabulary.eos_id is None:
            raise ConfigError(
                f"logits_eos_inf has no effect: the model's eos_token_id={self.spec.eos_id} is not in its "
                f"vocabulary of {self.spec.vocab_size}"
            )
        if method.sampling_params.drop_after_eos and not stop_at_eos:
            raise ConfigError(
                "drop_after_eos=true has no effect where no end token ends the answer (stop_at_eos=false, "
                "ignore_eos=true, infilling); leave it out"
            )
        facts = self.facts
        drafter = method.decoder.draft_model
        if drafter is not None:
            facts = replace(facts, draft=self._draft_with(drafter))
        return Maker(method, policy, seed, self.stop_ids, stop_at_eos, facts)

    def _draft_with(self, name: str) -> Callable[[Canvas], Ints]:
        """A smaller model's guess at all open positions, by the threshold rule."""
        from unmask.engine.llm import LLM

        if name not in self._drafters:
            self._drafters[name] = LLM(name, dtype=self.model.dtype, device=self.model.device)
        small = self._drafters[name]
        if small.spec.vocab_size != self.spec.vocab_size:
            raise ConfigError(
                f"drafter={name!r} has {small.spec.vocab_size} rows of vocabulary, the model "
                f"{self.spec.vocab_size}; use a drafter with the same tokenizer"
            )

        def draft(canvas: Canvas) -> Ints:
            if len(canvas) > small.spec.max_length:
                raise ConfigError(
                    f"drafter={name!r} has a context of {small.spec.max_length}, the canvas "
                    f"{len(canvas)} positions; use a shorter gen_length or another drafter"
                )
            own = replace(
                canvas,
                tokens=np.where(canvas.open, small.spec.mask_id, canvas.tokens),
                mask_id=small.spec.mask_id,
                infilling=True,
            )
            make = small._maker(
                "threshold", ("none", None), 0, False, {"threshold": 0.7}, INFILL_OPTIONS
            )
            done = small._run([make(own)], 1)[0].canvas
            return np.where(canvas.open, done.tokens, -1)

        return draft
