"""Sampling parameters: the knobs that determine the proposals, common to all decoders."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from unmask.errors import ConfigError
from unmask.knobs import Pairs, knob

VOCAB_SIZE = 1000
MIN_TEMPERATURE = 1e-6
"""The lowest temperature above 0 (SGLang treats lower ones as 0). Float32 logits near 8 are spaced by 1e-6,
so at lower temperatures distinct logits differ by a nat or more and sampling is nearly greedy; far below,
logits overflow."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The parameters by which a token is proposed at a position.

    `temperature`: 0 is greedy; from 1e-6 on, tokens are sampled by Gumbel-max in float64. `top_p` in
    [0, 1], `top_k` (-1 and 0 keep all) and `min_p` in [0, 1] restrict the sampled tokens, in that order and
    after the temperature (Dream's order, with SGLang's `min_p` at its end); the likeliest token always
    remains, so they cannot change a greedy answer. The confidence remains that of the model's distribution.
    `cfg_scale` >= 0: classifier-free guidance `un + (1 + w)(cond - un)`, where `un` has a masked prompt
    (LLaDA, arXiv:2502.09992, Eq. 16); 0 is off.
    `logits_eos_inf`: never propose end-of-text. `confidence_eos_eot_inf`: set the confidence of a proposed
    end-of-text or end-of-turn to 0, so that they are committed last; with `compat` and temperature > 0 only
    end-of-turn, as in LLaDA's published code. `drop_after_eos`: once an end token is decided, positions
    right of it become padding and are no longer computed, even while positions left of it are open. This is
    approximate, since these no longer attend to the dropped positions, and not from a paper.

    `vocabulary` restricts the tokens over which the confidence is computed, to `vocab_size` tokens:
    "static": the likeliest at each position. "adaptive": as "static", with the number of tokens of CadLLM's
    Eq. 4 (`decoders.base.cadllm_controller`). "frequency": the most frequent tokens of the file
    `frequencies`; no other token is proposed, and the LM head computes only those rows. "union": the
    likeliest at any position of the block's first forward; later LM heads compute only those rows, and when
    the bound on the probability of all others exceeds `max_missed`, the next forward computes all rows.
    "none": the whole vocabulary. None: the decoder's default.

    `constraints`: given tokens of the answer, by their offset from the prompt's end (Prophet,
    arXiv:2508.19982): an id, or a text whose tokens stand from this offset on. They are there from the
    first forward and never change; guidance hides them like the prompt.
    """

    temperature: float = knob(
        0.0, "sampling temperature, 0 or at least 1e-6; 0: greedy, large: nearly uniform"
    )
    top_p: float | None = knob(
        None,
        "sample from the likeliest tokens with this total probability, in [0, 1]; 0: the likeliest alone, "
        "1: all tokens; default: all; no effect on greedy decoding, except in decoder dream",
    )
    top_k: int | None = knob(
        None,
        "sample from this many likeliest tokens, at least -1; 1: greedy, -1 or 0: all tokens; "
        "default: all; no effect "
        "on greedy decoding, except in decoder dream",
    )
    min_p: float = knob(
        0.0,
        "sample from tokens with at least this share of the likeliest one's probability, in [0, 1]; 0: all "
        "tokens, 1: greedy; no effect on greedy decoding, except in decoder dream",
    )
    cfg_scale: float = knob(
        0.0,
        "weight of classifier-free guidance, >= 0; 0: off, large: follows the prompt closely; costs a "
        "second row per forward",
    )
    logits_eos_inf: bool = knob(False, "never propose end-of-text")
    confidence_eos_eot_inf: bool = knob(
        False, "give end-of-text and end-of-turn no confidence, so that they are committed last"
    )
    drop_after_eos: bool = knob(
        False,
        "drop the positions right of an end token as soon as it is decided, even where that changes the "
        "answer; approximate; false: leave out those that cannot change it (in block-causal models)",
    )
    vocabulary: Literal["none", "static", "adaptive", "frequency", "union"] | None = knob(
        None,
        "tokens over which confidence is computed: none (all), static (the likeliest at a position), "
        "adaptive (the same, their number by CadLLM's Eq. 4), frequency (the most frequent in a file), "
        "union (the likeliest in a block's first forward; later LM heads compute only these); default: "
        "the decoder's choice",
    )
    vocab_size: int | None = knob(
        None,
        "number of tokens for vocabulary=static, frequency or union, at least 1; small: fast but "
        "approximate, large: like none; default: 1000",
    )
    max_missed: float = knob(
        1.0,
        "vocabulary=union: bound on the probability of the tokens left out, in [0, 1], above which the "
        "next forward computes all; 0: most often, 1: never",
    )
    frequencies: str | None = knob(
        None,
        "file of token counts for vocabulary=frequency and score=pc, written by `unmask frequencies`",
    )
    constraints: Pairs | None = knob(
        None,
        'given tokens of the answer by offset from its start: ids or texts, {"40": 198, "41": "The end"}, '
        "or texts alone as 40:So, several joined by vertical bars; default: none",
    )
    compat: bool = knob(False, "reproduce quirks of the reference code that change tokens")

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (value >= 0 and isfinite(value)):
                raise ConfigError(f"{name}={value} must be a finite number, at least 0")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature} is too low to sample with; use 0 for greedy decoding, or "
                f"at least {MIN_TEMPERATURE:g}"
            )
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} must be between 0 and 1")
        if self.top_k is not None and self.top_k < -1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or -1 or 0 for all tokens")
        has_size = self.vocabulary not in (None, "none", "adaptive")
        if self.vocab_size is not None and (not has_size or self.vocab_size < 1):
            raise ConfigError(
                f"vocab_size={self.vocab_size} must be at least 1 and needs vocabulary=static, "
                f"frequency or union"
            )
        if not 0 <= self.max_missed <= 1:
            raise ConfigError(f"max_missed={self.max_missed} must be between 0 and 1")
        if self.max_missed < 1 and self.vocabulary != "union":
            raise ConfigError(
                f"max_missed={self.max_missed} has no effect without vocabulary=union; leave it out"
            )
        if self.vocabulary == "union" and self.cfg_scale > 0:
            raise ConfigError(
                f"vocabulary=union cannot bound the missed probability with cfg_scale={self.cfg_scale}; "
                f"use one of them"
            )
        if self.vocabulary == "frequency" and self.frequencies is None:
            raise ConfigError(
                "vocabulary=frequency needs frequencies=FILE; make one with `unmask frequencies`"
            )

    def defaults(self) -> dict[str, object]:
        """Return the values in force of parameters that are None, where None is not "no restriction"."""
        has_size = self.vocabulary in ("static", "frequency", "union")
        return {"vocab_size": self.num_tokens} if has_size else {}

    @property
    def num_tokens(self) -> int:
        """`vocab_size` or its default, in tokens."""
        return VOCAB_SIZE if self.vocab_size is None else self.vocab_size
