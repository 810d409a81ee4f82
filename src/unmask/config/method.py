"""From composed keys to the method that runs: the decoder that the words stand for, its knobs, its cache.

`generation=vanilla generation.threshold=0.9` is decoder `threshold` (the founding documents' spelling),
`alg` and `num_transfer_tokens` are d2Cache's; each translation is told in a note.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from unmask import caches, decoders
from unmask.config.compose import Composed, Value
from unmask.errors import ConfigError
from unmask.knobs import field_names, split_call
from unmask.sampling.params import SamplingParams

SCORES = {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}


@dataclass(frozen=True)
class Method:
    """A decoder with the knobs it is given, a cache with its; `notes` tell what was changed on the way.

    `layers`: knob -> the layer that said it; a knob that is missing has the decoder's default.
    """

    decoder: str
    knobs: dict[str, Any]
    cache: str
    cache_knobs: dict[str, Any]
    layers: dict[str, str]
    notes: tuple[str, ...] = ()


def method_of(composed: Composed) -> Method:
    """The method of a configuration. Raises ConfigError for knobs that it does not have or take."""
    name = composed["generation.strategy"]
    given = _fitting(name, composed.group("generation"))
    notes: list[str] = []
    given = _translated(name, given, composed, notes)
    given = _one_rule(name, given, notes)
    decoder, knobs, said = decoders.resolve(name, {key: v.value for key, v in given.items()})
    if said is not None:
        notes.append(said)
    layers = {key: given[key].layer if key in given else f"decoder {name}" for key in knobs}
    knobs = {
        key: value
        for key, value in knobs.items()
        if key not in given or not given[key].is_soft or _takes(decoder, key)
    }
    _check(decoder, knobs)
    cache = composed["cache.name"]
    own = composed.group("cache")
    cache_knobs = {key: value.value for key, value in own.items()}
    caches.make_cache(cache, cache_knobs)
    layers |= {f"cache.{key}": value.layer for key, value in own.items()}
    return Method(decoder, knobs, cache, cache_knobs, layers, tuple(notes))


def _takes(decoder: str, knob: str) -> bool:
    return knob in decoders.knob_names(decoder) or knob in field_names(SamplingParams)


def _fitting(name: str, given: dict[str, Value]) -> dict[str, Value]:
    """The knobs, those left out that a preset suggests to a decoder that has none of the name."""
    own, _ = split_call(name)
    return {key: v for key, v in given.items() if not v.is_soft or _takes(own, key)}


def _translated(
    name: str, given: dict[str, Value], composed: Composed, notes: list[str]
) -> dict[str, Value]:
    """d2Cache's spellings in ours."""
    found = dict(given)
    if "sigma" in found and found["sigma"].value in (0, 0.0):
        found["sigma"] = dataclasses.replace(found["sigma"], value=None)
    if "temperature" in found and found["temperature"].value is None:
        del found["temperature"]
    alg = composed.values["generation.alg"]
    if alg.is_given and alg.value is not None:
        key = "alg" if name == "dream" else "score"
        value = alg.value if name == "dream" else SCORES[alg.value]
        _add(found, key, Value(value, alg.layer), f"alg={alg.value}")
        if key == "score":
            notes.append(f"alg={alg.value} is score={value}")
    count = composed.values["generation.num_transfer_tokens"]
    if count.is_given and count.value is not None:
        _transfer(name, count, found, composed, notes)
    return found


def _transfer(
    name: str, count: Value, found: dict[str, Value], composed: Composed, notes: list[str]
) -> None:
    """`num_transfer_tokens` as a number of steps."""
    scheduled = "steps" in decoders.knob_names(name) and not {"threshold", "factor", "gamma"} & set(
        found
    )
    if not scheduled:
        if count.value != 1:
            raise ConfigError(
                f"generation.num_transfer_tokens={count.value}: this method has no schedule, it commits as "
                f"many as its rule says and at least 1; use 1, or leave it out"
            )
        return
    length = composed["generation.gen_length"]
    if count.value == 1:
        return
    if length is None or length % count.value:
        raise ConfigError(
            f"generation.num_transfer_tokens={count.value} must divide generation.gen_length={length}; "
            f"give both, or generation.steps"
        )
    steps = length // count.value
    _add(found, "steps", Value(steps, count.layer), f"num_transfer_tokens={count.value}")
    notes.append(f"num_transfer_tokens={count.value} is steps={steps}")


def _add(found: dict[str, Value], key: str, value: Value, written: str) -> None:
    before = found.get(key)
    if before is not None and before.value != value.value and not before.is_soft:
        raise ConfigError(f"{written} and {key}={before.value} contradict; give one of them")
    found[key] = value


def _one_rule(name: str, given: dict[str, Value], notes: list[str]) -> dict[str, Value]:
    """The documents add `factor=1` to a command that has a threshold: the factor is meant."""
    both = name == "vanilla" and all(
        key in given and given[key].value is not None for key in ("threshold", "factor")
    )
    if not both:
        return given
    notes.append(
        f"factor={given['factor'].value} takes the place of threshold={given['threshold'].value}"
    )
    return {key: value for key, value in given.items() if key != "threshold"}


def _check(decoder: str, knobs: dict[str, Any]) -> None:
    """Names and values of all knobs, as the engine will check them."""
    from unmask.engine.request_builder import configure

    configure(decoder, dict(knobs), ("gen_length", "strategy", "num_transfer_tokens"))
