"""The options of a call: names, values and prompts, checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from unmask import decoders
from unmask.caches import make_cache
from unmask.errors import ConfigError, PromptError, unknown_name
from unmask.knobs import field_names, set_field
from unmask.proposal import Proposal

PREFIX = "cache."
Prompt = str | Sequence[int]
INFILL_OPTIONS = ("decoder", "preset", "cache", "cache_args", "seed", "return_trace")
STREAM_OPTIONS = ("decoder", "preset", "cache", "cache_args", "seed", "stop_at_eos")
OPTIONS = (*INFILL_OPTIONS, "gen_length", "stop_at_eos", "raw", "max_batch_size")
"""Options of `infill`, `stream` and `generate` beside the knobs of the proposal and of the decoder."""


def flags(**flags: Any) -> None:
    """Raise ConfigError for a flag that is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} must be True or False")


def prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as a list. Raises PromptError."""
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


def split_cache(
    name: str, args: Mapping[str, Any] | None, knobs: dict[str, Any], block_size: int | None
) -> tuple[dict[str, Any], Any]:
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

    decoder: Any
    proposal: Proposal
    said: str | None


def configure(decoder: str, knobs: dict[str, Any], options: tuple[str, ...] = OPTIONS) -> Method:
    """The method of one set of knobs. Raises ConfigError for a name that nothing of it has.

    `options` are further names that the caller takes, for the error's listing.
    """
    shared = field_names(Proposal)
    decoder, knobs, said = decoders.resolve(decoder, knobs)
    own = decoders.knob_names(decoder, knobs)
    for key in knobs:
        if key not in shared and key not in own:
            raise _unknown_knob(decoder, key, {*shared, *own, *options} - {key})
    proposal = {k: set_field(Proposal, k, v) for k, v in knobs.items() if k in shared}
    method = decoders.make_decoder(decoder, {k: v for k, v in knobs.items() if k in own})
    made = Proposal(**proposal)
    inner = getattr(method, "inner", method)
    if made.temperature == 0 and not getattr(inner, "tells_sampling", False):
        for key, value in (("top_p", made.top_p), ("top_k", made.top_k)):
            if value is not None:
                raise ConfigError(
                    f"{key}={value} has no effect at temperature=0; set a temperature"
                )
    if "kl" in getattr(inner, "stats", ()) and made.vocabulary in ("frequency", "union"):
        raise ConfigError(
            f"vocabulary={made.vocabulary} changes which tokens there are from forward to forward; "
            f"decoder klass compares whole distributions: use static or none"
        )
    score = getattr(inner, "effective_score", "confidence")
    if made.vocabulary == "static" and score not in ("confidence", "pc"):
        raise ConfigError(
            f"vocabulary=static has no effect on score={score}; use another vocabulary"
        )
    reads = made.vocabulary == "frequency" or getattr(inner, "effective_score", "") == "pc"
    if made.frequencies is not None and not reads:
        raise ConfigError(
            f"frequencies={made.frequencies} has no effect here; use score=pc, decoder pc_sampler or "
            f"vocabulary=frequency, or leave it out"
        )
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
