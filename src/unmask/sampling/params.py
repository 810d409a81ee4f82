"""How tokens are proposed: the knobs that every decoder has."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from unmask.errors import ConfigError
from unmask.knobs import knob

MIN_TEMPERATURE = 1e-6
"""The lowest above 0 (SGLang takes what is below for 0). Float32 logits of size 8 lie 1e-6 apart, so below
it those that differ at all are a nat apart or more: little is left to draw. Far below, logits overflow."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is proposed at a position; the same for every decoder.

    `temperature`: 0 takes the likeliest token, from 1e-6 on Gumbel-max in float64. `top_p` in (0, 1] and
    `top_k` >= 1 restrict what is sampled, in that order after the temperature (Dream's order); the
    confidence stays the model's own. `cfg_scale` >= 0: classifier-free guidance `un + (1 + w)(cond - un)`,
    where `un` sees the prompt masked (LLaDA, Eq. 16); 0 is off. `logits_eos_inf`: never propose
    end-of-text. `confidence_eos_eot_inf`: give a proposed end-of-text or end-of-turn no confidence, so
    that they are committed last; with `compat` and temperature > 0 only end-of-turn, as LLaDA's
    published code does. `drop_after_eos`: once an end token is decided, positions right of it become
    padding and are not computed any more, while open ones are left of it (ours; approximate: those lose
    what they saw there).

    `vocabulary` prunes what confidence is computed over, to `vocab_size` tokens: "static" the likeliest
    at each position, "adaptive" as many of them as CadLLM's Eq. 4 says (`decoders._cadllm`), "frequency"
    the most frequent of the file `frequencies` (nothing else is proposed, and the LM head has only those
    rows), "union" the likeliest at any position of the block's first forward (the later LM heads have only
    those rows; what that can miss is bounded, and a bound above `max_missed` makes the next forward a
    full one). "none" is the whole vocabulary; None leaves it to the decoder.
    """

    temperature: float = knob(
        0.0, "0: the likeliest token; from 1e-6 on: sampled, the higher the wilder"
    )
    top_p: float | None = knob(
        None, "sample among the likeliest tokens that share this probability"
    )
    top_k: int | None = knob(None, "sample among this many likeliest tokens")
    cfg_scale: float = knob(
        0.0, "weight of classifier-free guidance, 0: off; costs a second row a forward"
    )
    logits_eos_inf: bool = knob(False, "never propose end-of-text")
    confidence_eos_eot_inf: bool = knob(False, "commit end-of-text and end-of-turn last")
    drop_after_eos: bool = knob(
        False,
        "give up what lies right of a decided end token at once, not when all left of it is decided; "
        "approximate",
    )
    vocabulary: Literal["none", "static", "adaptive", "frequency", "union"] | None = knob(
        None,
        "tokens that count: none (all), static (the likeliest of a position), adaptive (as many as "
        "CadLLM's Eq. 4 says), frequency (of a file), union (the likeliest of a block's first forward; "
        "later LM heads have only those rows); default: as the decoder says",
    )
    vocab_size: int | None = knob(None, "how many tokens vocabulary keeps; default: 1000")
    max_missed: float = knob(
        1.0, "vocabulary=union: probability that may be missed before the head is whole again"
    )
    frequencies: str | None = knob(None, "file of background counts, made by `unmask frequencies`")
    compat: bool = knob(
        False, "repeat the reference's token-changing quirks instead of the fixed rule"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (value >= 0 and isfinite(value)):
                raise ConfigError(f"{name}={value} must be a number, not negative")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ConfigError(
                f"temperature={self.temperature} is too low to sample with; use 0 for the likeliest token, "
                f"or {MIN_TEMPERATURE:g} and more"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        pruned = self.vocabulary not in (None, "none", "adaptive")
        if self.vocab_size is not None and (not pruned or self.vocab_size < 1):
            raise ConfigError(
                f"vocab_size={self.vocab_size} must be at least 1 and needs vocabulary=static, "
                f"frequency or union"
            )
        if not 0 <= self.max_missed <= 1:
            raise ConfigError(f"max_missed={self.max_missed} must be between 0 and 1")
        if self.max_missed < 1 and self.vocabulary != "union":
            raise ConfigError(
                f"max_missed={self.max_missed} has no effect without vocabulary=union"
            )
        if self.vocabulary == "union" and self.cfg_scale > 0:
            raise ConfigError(
                f"vocabulary=union cannot bound what it misses under cfg_scale={self.cfg_scale}; use one "
                f"of them"
            )
        if self.vocabulary == "frequency" and self.frequencies is None:
            raise ConfigError(
                "vocabulary=frequency needs frequencies=FILE; make one with `unmask frequencies`"
            )

    @property
    def kept_tokens(self) -> int:
        """`vocab_size`, or its default."""
        return 1000 if self.vocab_size is None else self.vocab_size
