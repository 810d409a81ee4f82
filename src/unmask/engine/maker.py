"""From names and knobs to requests: everything is checked here, before anything runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.background import load_background
from unmask.canvas import Canvas, Ints, ModelFacts
from unmask.engine.options import (
    INFILL_OPTIONS,
    OPTIONS,
    STREAM_OPTIONS,
    Method,
    Prompt,
    configure,
    flags,
    split_cache,
)
from unmask.engine.prompts import Prompts
from unmask.engine.request import Request, Sequence
from unmask.errors import ConfigError, SettingWarning
from unmask.knobs import whole
from unmask.models._transformer import Transformer
from unmask.sampling import Vocabulary

if TYPE_CHECKING:
    from unmask.engine.llm import LLM

GEN_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Maker:
    """Everything of a request but its canvas."""

    method: Method
    cache: Any
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
            proposal=self.method.proposal,
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

        `what` is a prompt, or a canvas (`prompt_canvas`, `infill_canvas`), whose slots are there already.
        Everything that can be wrong with it is found here, in the caller's thread: raises PromptError and
        ConfigError.
        """
        flags(stop_at_eos=stop_at_eos, raw=raw)
        given = isinstance(what, Canvas)
        options = STREAM_OPTIONS if given else OPTIONS
        ends = stop_at_eos and not (isinstance(what, Canvas) and what.infilling)
        make = self._maker(decoder, (cache, cache_args), seed, ends, knobs, options)
        if isinstance(what, Canvas):
            if gen_length is not None or raw:
                raise ConfigError(
                    f"gen_length={gen_length}, raw={raw} have no effect on a canvas, which has its slots; "
                    f"leave them out"
                )
            canvas = what
        else:
            length = self.first_length(make.method.decoder, gen_length)
            option = getattr(make.method.decoder, "length_knob", "gen_length")
            canvas = self.prompt_canvas(what, length, raw=raw, option=option)
        if make.method.proposal.frequencies is not None:
            load_background(make.method.proposal.frequencies, self.spec.vocab_size)
        made = make(canvas)
        Sequence.begin(made)
        return made

    @staticmethod
    def first_length(decoder: Any, asked: int | None) -> int:
        """The slots to begin with. Raises ConfigError when a decoder that finds the length is told one."""
        if getattr(decoder, "chooses_length", False):
            if asked is not None:
                raise ConfigError(
                    f"gen_length={asked} has no effect: the decoder finds the length; use "
                    f"initial_gen_length and max_gen_length"
                )
            return int(decoder.first_length())
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
        if method.proposal.logits_eos_inf and self.vocabulary.eos_id is None:
            raise ConfigError(
                f"logits_eos_inf has no effect: the model's eos_token_id={self.spec.eos_id} is not in its "
                f"vocabulary of {self.spec.vocab_size}"
            )
        if method.proposal.drop_after_eos and not stop_at_eos:
            raise ConfigError(
                "drop_after_eos=true has no effect where no end token ends the answer (stop_at_eos=false, "
                "ignore_eos=true, infilling); leave it out"
            )
        facts = self.facts
        drafter = getattr(method.decoder, "drafter", "lookup")
        if drafter != "lookup":
            facts = replace(facts, draft=self._draft_with(drafter))
        return Maker(method, policy, seed, self.stop_ids, stop_at_eos, facts)

    def _draft_with(self, name: str) -> Callable[[Canvas], Ints]:
        """A smaller model's guess at all open slots, by the threshold rule."""
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
                    f"{len(canvas)} slots; use a shorter gen_length or another drafter"
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
