"""The decoding method: decoder, cache policy and sampling parameters, parsed once from several sources.

`MethodSpec.parse` merges the sources, replaces aliases and presets by the decoders that they stand for,
checks every name and value, and builds the decoder and the cache. All code that decodes takes the immutable
result.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final, Literal, TypeVar

from unmask import caches, decoders
from unmask.caches.base import AnyCache
from unmask.decoders.base.presets import PRESETS
from unmask.decoders.base.protocol import AnyDecoder, Wrapper
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import Source, SourcedValue, field_names, merge, read_value, set_field, split_call
from unmask.sampling.params import SamplingParams

__all__ = ["CACHE_PREFIX", "MethodSpec", "Note", "NoteCode", "Source", "knob_names"]

T = TypeVar("T")

CACHE_PREFIX = "cache."
"""Prefix of the keys of the cache's knobs."""
DEFAULT_DECODER: Final = "vanilla"
DEFAULT_CACHE: Final = "none"
GEN_LENGTH = 128
"""Default length of an answer, in positions."""


NoteCode = Literal["alias", "preset", "translated", "no_effect"]
"""Kinds of notes: a knob selected another decoder; a preset set the decoder and its knobs; a knob of
another project was translated; a value without effect on the method was dropped."""


@dataclass(frozen=True, slots=True)
class Note:
    """A difference between the written settings and the method, caused by `key`."""

    code: NoteCode
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class MethodAlias:
    """A knob that, written with decoder (or cache) `on`, selects `target` instead.

    `implies`: knobs of the target that it sets. `off`: values of the knob that select nothing.
    """

    key: str
    on: str
    target: str
    implies: Mapping[str, object] = field(default_factory=dict)
    off: tuple[object, ...] = (None, False)


ALIASES = (
    MethodAlias("threshold", "vanilla", "threshold"),
    MethodAlias("factor", "vanilla", "factor"),
    MethodAlias("gamma", "vanilla", "eb_sampler", {"order": "confidence"}),
    MethodAlias("debias", "vanilla", "pc_sampler", {"lambd": 0.0}),
    MethodAlias("cache.use_dual", "prefix", "dual", off=(False,)),
    MethodAlias("cache.use_dual", "dual", "prefix", off=(True,)),
)
"""Aliases of the commands of Fast-dLLM and d2Cache, where a knob selects the method."""
MODIFIERS: Mapping[str, Mapping[str, object]] = {"debias": {"score": "pc"}}
"""Aliases that may be combined with one other, and the knobs that they then set of its target."""
SPELLINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "alg": ("score", {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}),
}
"""d2Cache's knobs: our knob and values, for decoders that have no knob of d2Cache's name."""
TRANSFER = "num_transfer_tokens"
"""d2Cache's knob for the number of tokens per forward, from which the number of steps follows."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A decoder, a cache policy and sampling parameters; immutable, shared by any number of requests.

    `given`: the values that are not defaults, after aliases and presets, by knob (`cache.NAME` for the
    cache); `origins`: the origin of each. `cache` may be `auto`, until `bind` resolves it for a model.
    `adaptable`: the keys whose values nobody wrote for this call, such as those of a preset or a server;
    they give way to a written value or a length that they contradict.
    """

    decoder: AnyDecoder
    cache: AnyCache
    sampling_params: SamplingParams
    notes: tuple[Note, ...] = ()
    given: Mapping[str, object] = field(default_factory=dict, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    adaptable: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def parse(
        cls,
        *sources: Source,
        gen_length: int | None = None,
        options: Iterable[str] = (),
        is_trusted: bool = False,
    ) -> MethodSpec:
        """Build the method from sources in order of precedence.

        Their keys are `decoder` and `cache` (names, or calls such as "prophet(inner=cadllm)"), `preset`,
        and the knobs of the decoder, of `SamplingParams` and, as `cache.NAME`, of the cache. If a source
        names a decoder (or a cache), that of a default source is ignored, along with its knobs.
        `gen_length` is needed to convert `num_transfer_tokens` to steps. `options`: further names that the
        caller accepts, listed in errors. With `is_trusted`, decoder and cache may also be objects, classes,
        files, `module:Class` or entry points, whose code is run (see `own_code`).

        Raises ConfigError; for two values of one key, its subclass ContradictionError.
        """
        if is_trusted:
            sources = tuple(map(_admitted, sources))
        merged = merge(*_without_replaced([_expanded(source) for source in sources]))
        name = str(merged.pop("decoder").value) if "decoder" in merged else DEFAULT_DECODER
        cache_name = str(merged.pop("cache").value) if "cache" in merged else DEFAULT_CACHE
        notes: list[Note] = []
        own, inside = split_cache_keys(merged)
        cache, inside = _cache(cache_name, inside, own.get("compat"))
        try:
            name, own = _resolve(name, own, notes, gen_length)
        except ConfigError as error:
            error.key = error.key or "decoder"
            raise
        own, decoder, sampling_params = _build_adapted(name, own, options)
        given = own | inside
        return cls(
            decoder,
            cache,
            sampling_params,
            tuple(notes),
            {key: value.value for key, value in given.items()},
            {key: value.source.origin for key, value in given.items()},
            frozenset(key for key, value in given.items() if value.source.is_adaptable),
        )

    def bind(self, block_size: int | None) -> MethodSpec:
        """Return the method with cache `auto` resolved for this block size (None: full attention)."""
        bound = caches.bind(self.cache, block_size)
        return self if bound is self.cache else replace(self, cache=bound)

    def source(self, *, is_default: bool = False, is_adaptable: bool = False) -> Source:
        """Return the method as a source, from which another method can be derived."""
        values = {"decoder": self.decoder_name, "cache": self.cache_name, **self.given}
        return Source(values, is_default=is_default, is_adaptable=is_adaptable)

    def with_values(self, values: Mapping[str, object]) -> MethodSpec:
        """Return a copy with other values for some keys. Raises ConfigError."""
        spec = MethodSpec.parse(Source(values), self.source(is_default=True))
        return replace(spec, adaptable=(self.adaptable - values.keys()) | spec.adaptable)

    @property
    def decoder_name(self) -> str:
        """The decoder's name."""
        return self.decoder.name

    @property
    def cache_name(self) -> str:
        """The cache's name."""
        return self.cache.name

    @property
    def label(self) -> str:
        """The decoder with its non-default knobs as written, e.g. `threshold(threshold=0.8)`."""
        knobs = [f"{key}={value}" for key, value in split_cache_keys(self.given)[0].items()]
        return f"{self.decoder_name}({', '.join(knobs)})" if knobs else self.decoder_name

    def describe(self) -> str:
        """Return the decoder as `name(knob=value, ...)`, knobs at their defaults left out."""
        return decoders.describe(self.decoder)

    def describe_cache(self) -> str:
        """Return the cache as `name(knob=value, ...)`, knobs at their defaults left out."""
        return caches.describe(self.cache)

    def knobs(self) -> dict[str, object]:
        """Return the effective values of all sampling parameters and knobs of the decoder."""
        return dataclasses.asdict(self.sampling_params) | dataclasses.asdict(self.decoder)

    def all_knobs(self) -> dict[str, object]:
        """Return the effective values of `knobs` and of those of the cache, as `cache.NAME`."""
        inside = {f"{CACHE_PREFIX}{k}": v for k, v in dataclasses.asdict(self.cache).items()}
        return self.knobs() | inside

    def values(self) -> dict[str, object]:
        """Return all effective values: `decoder`, `cache` and every knob."""
        return {"decoder": self.decoder_name, "cache": self.cache_name, **self.all_knobs()}

    def first_length(self, gen_length: int | None) -> int:
        """Return the initial length of the answer for a `gen_length` (None: the default).

        Raises ConfigError for a `gen_length` where the decoder chooses the length.
        """
        if self.chooses_length:
            if gen_length is not None:
                raise ConfigError(
                    f"gen_length={gen_length} has no effect: the decoder chooses the length; use "
                    f"initial_gen_length and max_gen_length"
                )
            return self.decoder.first_length()
        return GEN_LENGTH if gen_length is None else gen_length

    @property
    def chooses_length(self) -> bool:
        """True if the decoder chooses the length of the answer."""
        return self.decoder.chooses_length


def split_cache_keys(values: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Split values by key into all others and those of the cache (`cache.NAME`)."""
    inside = {key: value for key, value in values.items() if key.startswith(CACHE_PREFIX)}
    return {key: value for key, value in values.items() if key not in inside}, inside


def knob_names(name: str, knobs: Mapping[str, object] | None = None) -> set[str]:
    """Return the names of a decoder's knobs: its own, those of a wrapped decoder, and aliases."""
    return decoders.knob_names(name, knobs) | {a.key for a in ALIASES if a.on == name}


def _admitted(source: Source) -> Source:
    """Register the decoders and caches of users in a source, and replace them by their names."""
    values = decoders.WORKSHOP.admit_all(source.values, "decoder", "")
    return replace(source, values=caches.WORKSHOP.admit_all(values, "cache", CACHE_PREFIX))


def _expanded(source: Source) -> Source:
    """Split `name(knob=value)` of decoder and cache into the name and separate keys."""
    values = dict(source.values)
    for key, prefix in (("decoder", ""), ("cache", CACHE_PREFIX)):
        if key not in values:
            continue
        if not isinstance(values[key], str):
            raise unknown_name(key, str(values[key]), (decoders if not prefix else caches).names())
        values[key], inside = split_call(str(values[key]))
        call = replace(source, values={prefix + k: v for k, v in inside.items()}, is_default=False)
        rest = replace(source, values=values, is_default=False)
        values = {k: v.value for k, v in merge(call, rest).items()}
    return replace(source, values=values)


def _without_replaced(sources: list[Source]) -> list[Source]:
    """Remove a decoder or cache, with its knobs, from default sources where another source replaces it."""
    named = {key for source in sources if not source.is_default for key in source.values}
    effective = []
    for source in sources:
        inside = {k for k in source.values if k == "cache" or k.startswith(CACHE_PREFIX)}
        dropped: set[str] = set()
        if source.is_default and "decoder" in source.values and named & {"decoder", "preset"}:
            dropped |= source.values.keys() - inside
        if source.is_default and "cache" in inside and "cache" in named:
            dropped |= inside
        values = {key: value for key, value in source.values.items() if key not in dropped}
        effective.append(replace(source, values=values))
    return effective


def _is_taken(name: str, key: str, knobs: Mapping[str, SourcedValue]) -> bool:
    return key in knob_names(name, _plain(knobs)) or key in field_names(SamplingParams)


def _plain(knobs: Mapping[str, SourcedValue]) -> dict[str, object]:
    return {key: value.value for key, value in knobs.items()}


def _fitting(name: str, knobs: dict[str, SourcedValue]) -> dict[str, SourcedValue]:
    """Return the knobs without soft values for which the decoder has no knob."""
    return {k: v for k, v in knobs.items() if not v.source.is_soft or _is_taken(name, k, knobs)}


def _resolve(
    name: str, knobs: dict[str, SourcedValue], notes: list[Note], gen_length: int | None
) -> tuple[str, dict[str, SourcedValue]]:
    """Replace presets, other projects' knobs and aliases by a decoder and its own knobs."""
    origin = Source(origin=f"decoder {name}")
    name, knobs = _with_preset(name, knobs, origin, notes)
    cls = decoders.decoder_class(name)
    knobs = _translated(name, _fitting(name, knobs), notes, gen_length)
    if not issubclass(cls, Wrapper):
        name, knobs = _by_alias(name, knobs, origin, notes)
        return name, _fitting(name, knobs)
    inner = knobs.get("inner", SourcedValue(cls.default_inner(), origin))
    wrapped, inside = split_call(str(inner.value))
    inner_knobs = {
        key: value
        for key, value in knobs.items()
        if key not in field_names(cls) and key in knob_names(wrapped)
    }
    merge(Source(inside), Source(_plain(inner_knobs)))  # raises for contradictions
    for key, value in inside.items():
        inner_knobs.setdefault(key, SourcedValue(value, inner.source))
    wrapped, resolved = _resolve(wrapped, inner_knobs, notes, gen_length)
    rest = {key: value for key, value in knobs.items() if key not in inner_knobs}
    return name, _fitting(name, {**rest, **resolved, "inner": replace(inner, value=wrapped)})


def _with_preset(
    name: str, knobs: dict[str, SourcedValue], origin: Source, notes: list[Note]
) -> tuple[str, dict[str, SourcedValue]]:
    """Replace `preset` by its decoder and knobs; explicit knobs take precedence."""
    rest = {key: value for key, value in knobs.items() if key != "preset"}
    preset = str(knobs["preset"].value) if "preset" in knobs else "none"
    if preset.lower() in ("null", "none"):
        return name, rest
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    decoders.decoder_class(name)
    decoder, chosen = PRESETS[preset]
    if name not in (DEFAULT_DECODER, decoder):
        raise ConfigError(
            f"preset={preset} selects decoder {decoder!r}, not {name!r}; leave one of them out"
        )
    shown = ", ".join(f"{key}={value}" for key, value in chosen.items())
    notes.append(Note("preset", "preset", f"preset {preset} is {decoder}({shown})"))
    origin = replace(origin, is_adaptable=True)
    return decoder, {**{k: SourcedValue(v, origin) for k, v in chosen.items()}, **rest}


def _translated(
    name: str, knobs: dict[str, SourcedValue], notes: list[Note], gen_length: int | None
) -> dict[str, SourcedValue]:
    """Translate the knobs of other projects, unless the decoder has knobs of these names."""
    translated = dict(knobs)
    for key, (target, meanings) in SPELLINGS.items():
        written = translated.get(key)
        if written is None or _is_taken(name, key, knobs) or str(written.value) not in meanings:
            continue
        del translated[key]
        value = meanings[str(written.value)]
        _respell(translated, key, written, target, value)
        notes.append(Note("translated", key, f"{key}={written.value} is {target}={value}"))
    written = translated.pop(TRANSFER, None)
    if written is None:
        return translated
    count = read_value(written.value)
    is_scheduled = _is_taken(name, "steps", knobs) and not {"threshold", "factor", "gamma"} & set(
        translated
    )
    if not is_scheduled and count != 1:
        raise ConfigError(
            f"{TRANSFER}={count}: this method has no schedule, its rule determines the tokens per "
            f"forward, at least 1; use 1, or leave it out"
        )
    if not is_scheduled or count == 1:
        return translated
    if gen_length is None or not isinstance(count, int) or count < 1 or gen_length % count:
        raise ConfigError(
            f"{TRANSFER}={count} must divide gen_length={gen_length}; give both, or steps"
        )
    steps = gen_length // count
    _respell(translated, TRANSFER, written, "steps", steps)
    notes.append(Note("translated", TRANSFER, f"{TRANSFER}={count} is steps={steps}"))
    return translated


def _respell(
    knobs: dict[str, SourcedValue], key: str, written: SourcedValue, target: str, value: object
) -> None:
    """Set `target` for a knob written as `key`. Raises ContradictionError if `target` has another value."""
    direct = knobs.get(target)
    if direct is not None and not direct.source.is_soft:
        translation = Source({target: value}, spelling=f"{key}={written.value}, that is {{key}}")
        merge(translation, replace(direct.source, values={target: direct.value}, is_default=False))
    knobs[target] = SourcedValue(value, written.source)


def _by_alias(
    name: str, knobs: dict[str, SourcedValue], origin: Source, notes: list[Note]
) -> tuple[str, dict[str, SourcedValue]]:
    """Replace the aliases among a decoder's knobs by the decoder that they select."""
    aliases = {alias.key: alias for alias in ALIASES if alias.on == name}
    active = [key for key in aliases if key in knobs and not _is_off(aliases[key], knobs[key])]
    knobs = {key: value for key, value in knobs.items() if key not in aliases or key in active}
    if not active:
        return name, knobs
    implied: dict[str, object] = {}
    for key, changes in MODIFIERS.items():
        if len(active) == 2 and key in active and "gamma" not in active:
            active.remove(key)
            implied |= changes
            del knobs[key]
    if len(active) > 1:
        raise ConfigError(f"{' and '.join(active)} name different methods; use one of them")
    alias = aliases[active[0]]
    taken = knob_names(alias.target)
    knobs = {key: value for key, value in knobs.items() if key != alias.key or key in taken}
    for key, value in {**alias.implies, **implied}.items():
        knobs.setdefault(key, SourcedValue(value, origin))
    message = f"decoder {name} with {alias.key} is {alias.target}"
    if "steps" in knobs and "steps" not in taken:
        message += f", which has no schedule: steps={knobs.pop('steps').value} has no effect"
        notes.append(Note("no_effect", "steps", message))
    else:
        notes.append(Note("alias", alias.key, message))
    return alias.target, knobs


def _is_off(alias: MethodAlias, value: SourcedValue) -> bool:
    """Return True for a value with which the alias selects nothing; the number 0 is not false."""
    return any(read_value(value.value) is off for off in alias.off)


def _cache(
    name: str, knobs: dict[str, SourcedValue], compat: SourcedValue | None
) -> tuple[AnyCache, dict[str, SourcedValue]]:
    """Build the cache from its knobs and the decoder's `compat`; return it with its knobs."""
    name, knobs = _cache_by_alias(name, knobs)
    inner = knobs.get(CACHE_PREFIX + "inner")
    if inner is not None:
        target, knobs = _cache_by_alias(str(inner.value), knobs)
        knobs[CACHE_PREFIX + "inner"] = replace(inner, value=target)
    args = {key.removeprefix(CACHE_PREFIX): value.value for key, value in knobs.items()}
    return caches.make_cache(name, args, None if compat is None else compat.value), knobs


def _cache_by_alias(
    name: str, knobs: dict[str, SourcedValue]
) -> tuple[str, dict[str, SourcedValue]]:
    """Replace an alias among a cache's knobs by the cache that it selects."""
    for alias in ALIASES:
        written = knobs.get(alias.key)
        if alias.on != name or written is None or not isinstance(read_value(written.value), bool):
            continue
        rest = {key: value for key, value in knobs.items() if key != alias.key}
        return name if _is_off(alias, written) else alias.target, rest
    return name, dict(knobs)


def _build_adapted(
    name: str, knobs: dict[str, SourcedValue], options: Iterable[str]
) -> tuple[dict[str, SourcedValue], AnyDecoder, SamplingParams]:
    """Build the method without the fewest adaptable knobs that contradict written ones, at most two.

    Returns the knobs that remain too. Raises ConfigError.
    """
    adaptable = [key for key, value in knobs.items() if value.source.is_adaptable]
    try:
        return knobs, *_build(name, knobs, options)
    except ConfigError:
        for dropped in (*combinations(adaptable, 1), *combinations(adaptable, 2)):
            rest = {key: value for key, value in knobs.items() if key not in dropped}
            with suppress(ConfigError):
                return rest, *_build(name, rest, options)
        raise


def _build(
    name: str, knobs: dict[str, SourcedValue], options: Iterable[str]
) -> tuple[AnyDecoder, SamplingParams]:
    """Build the decoder and the sampling parameters. Raises ConfigError for a knob of neither."""
    shared, own = field_names(SamplingParams), knob_names(name, _plain(knobs))
    for key in knobs:
        if key not in shared and key not in own:
            raise _unknown_knob(name, key, {*shared, *own, *options} - {key})
    sampling = {k: set_field(SamplingParams, k, v.value) for k, v in knobs.items() if k in shared}
    decoder = decoders.make_decoder(name, {k: v.value for k, v in knobs.items() if k in own})
    params = SamplingParams(**sampling)
    decoder.check_sampling(params)
    return decoder, params


def _unknown_knob(decoder: str, key: str, allowed: set[str]) -> ConfigError:
    """Return the error for an unknown knob, with the decoders that have a knob of a similar name."""
    owners: dict[str, list[str]] = {}
    for other in decoders.names():
        for name in field_names(decoders.decoder_class(other)) - allowed:
            owners.setdefault(name, []).append(other)
    near = difflib.get_close_matches(key, sorted([*allowed, *owners]), n=1)
    owner = ""
    if near and near[0] in owners:
        owner = f"{near[0]!r} is a knob of decoder {', '.join(owners[near[0]])}; "
    return unknown_name(f"knob for decoder {decoder!r}:", key, allowed, owner)
