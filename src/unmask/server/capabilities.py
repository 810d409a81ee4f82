"""Capabilities of the model, the decoders and the caches, as data from which clients build forms."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Set
from typing import TYPE_CHECKING

from pydantic import JsonValue, SkipValidation
from typing_extensions import NotRequired, TypedDict

from unmask import caches, decoders
from unmask.canvas import ModelFacts, new_canvas
from unmask.errors import ConfigError
from unmask.knobs import Pairs, range_of
from unmask.method import CACHE_PREFIX, MethodSpec, split_cache_keys
from unmask.sampling.params import SamplingParams
from unmask.server.reply_models import Count, ReplyModel

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.models.spec import ModelSpec

SERVER_ONLY: dict[str, str | None] = {"frequencies": None, "drafter": "lookup"}
"""Knobs that name files or models of the server's machine, and the value that clients may send."""
COMMON = frozenset(("steps", "block_length", "temperature", "inner"))
"""Knobs that most requests set, besides those for which `unmask tune` has a range."""
TYPE_NAMES: dict[object, str] = {int: "int", float: "float", bool: "bool", str: "str"}


Limit = typing.Literal["min", "max", "above", "below"]


class TypeFields(TypedDict):
    """The type of a knob: `choices` of an enumeration, `of` for the items of a list, `nullable`."""

    type: str
    choices: NotRequired[list[JsonValue]]
    of: NotRequired[str]
    nullable: NotRequired[bool]


class RangeFields(TypedDict, total=False):
    """The range of a number: its text, and those of its limits that are numbers."""

    range: str
    min: float
    max: float
    above: float
    below: float


class KnobInfo(TypeFields, RangeFields):
    """A knob of a decoder or cache.

    `range`: the allowed numbers as the help states them; its limits that are numbers are `min` and `max`
    (allowed), `above` and `below` (not allowed). `is_common`: one of the knobs that are changed most often.
    """

    name: str
    default: JsonValue
    help: str
    is_common: bool


class ModelInfo(ReplyModel):
    """Facts of the model; `mask` is the text of the mask token (null: not in the tokenizer).

    `has_chat_template`: there is one, and it works on a user's message.
    """

    id: str
    family: str
    block_size: int | None
    max_length: Count
    vocab_size: Count
    mask: str | None
    mask_id: Count
    end_ids: list[Count]
    has_chat_template: bool
    attention: typing.Literal["full", "block_causal"]


class DecoderInfo(ReplyModel):
    """A decoder and its own knobs. `wraps`: it has a knob `inner` for another decoder."""

    name: str
    title: str
    source: str
    finds_length: bool
    wraps: bool
    knobs: SkipValidation[list[KnobInfo]]


class CacheInfo(ReplyModel):
    """A cache policy and its knobs.

    `exact`: decoding with it equals decoding without (null: depends on the knobs). `refused`: why the model
    cannot use it, whatever the knobs (null: it can).
    """

    name: str
    title: str
    source: str
    exact: bool | None
    refused: str | None
    knobs: SkipValidation[list[KnobInfo]]


class Capabilities(ReplyModel):
    """The reply of `GET /v1/schema`; `shared` are the knobs of every decoder."""

    model: ModelInfo
    defaults: dict[str, JsonValue]
    decoders: list[DecoderInfo]
    caches: list[CacheInfo]
    shared: SkipValidation[list[KnobInfo]]


def capabilities(llm: LLM, defaults: MethodSpec, model_id: str, max_length: int) -> Capabilities:
    """Return the capabilities of a served model; `defaults` is the server's default method."""
    return Capabilities(
        model=model_info(llm, model_id, max_length),
        defaults=method_info(defaults),
        decoders=[decoder_info(name) for name in decoders.served_names()],
        caches=[cache_info(name, llm) for name in caches.served_names()],
        shared=knob_infos(SamplingParams),
    )


def method_info(method: MethodSpec) -> dict[str, JsonValue]:
    """Return a method as the fields `decoder`, `knobs`, `cache` and `cache_args`, with its given values."""
    knobs, inside = split_cache_keys(
        {key: json_default(value) for key, value in method.given.items()}
    )
    return {
        "decoder": method.decoder_name,
        "knobs": knobs,
        "cache": method.cache_name,
        "cache_args": {key.removeprefix(CACHE_PREFIX): inside[key] for key in inside},
    }


def model_info(llm: LLM, model_id: str, max_length: int) -> ModelInfo:
    """Return the facts of a model."""
    spec, tokenizer = llm.spec, llm.tokenizer
    return ModelInfo(
        id=model_id,
        family=spec.family,
        block_size=spec.block_size,
        max_length=max_length,
        vocab_size=spec.vocab_size,
        mask=token_text(tokenizer, spec.mask_id),
        mask_id=spec.mask_id,
        end_ids=sorted(llm.stop_ids),
        has_chat_template=llm.prompts.chat.problem() is None,
        attention="full" if spec.block_size is None else "block_causal",
    )


def token_text(tokenizer: object, token_id: int) -> str | None:
    """Return a token as the vocabulary spells it, or None if the tokenizer does not know it."""
    spell = getattr(tokenizer, "convert_ids_to_tokens", None)
    text = None if spell is None else spell(token_id)
    return None if text is None else str(text)


def decoder_info(name: str) -> DecoderInfo:
    """Return the title, source and own knobs of a decoder."""
    cls = decoders.decoder_class(name)
    title, source = title_and_source(cls)
    return DecoderInfo(
        name=name,
        title=title,
        source=source,
        finds_length=decoders.finds_length(name),
        wraps="inner" in field_names(cls),
        knobs=knob_infos(cls, field_names(SamplingParams)),
    )


def cache_info(name: str, llm: LLM) -> CacheInfo:
    """Return the title, source and knobs of a cache policy."""
    cls = caches.cache_class(name)
    title, source = title_and_source(cls)
    return CacheInfo(
        name=name,
        title=title,
        source=source,
        exact=None if issubclass(cls, caches.Alias) else cls.exact,
        refused=refusal(name, llm.spec),
        knobs=knob_infos(cls),
    )


def refusal(name: str, spec: ModelSpec) -> str | None:
    """Return the error of a cache policy that cannot start on a model's smallest canvas, if any."""
    canvas = new_canvas([0], [True], 0, spec.mask_id)
    facts = ModelFacts(spec.vocab_size, spec.eos_id, None, spec.block_size, spec.max_length)
    try:
        caches.bind(caches.make_cache(name), spec.block_size).start(canvas, facts)
    except ConfigError as error:
        return str(error)
    return None


def title_and_source(cls: type[object]) -> tuple[str, str]:
    """Return the first line of the docstring of a method's module, and the source it cites."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    title, _, rest = text.partition("\n\n")
    match = re.search(r"Source: (.*?)(?:(?<!Eq)\. |: |$)", " ".join(rest.split()))
    source = match[1].rstrip(".") if match else ""
    if source.count("(") > source.count(")"):
        source = source[: source.rindex("(")].rstrip()
    return " ".join(title.split()).rstrip("."), source


def field_names(cls: type[object]) -> set[str]:
    """Return the names of the fields of a dataclass."""
    assert dataclasses.is_dataclass(cls), "methods and sampling parameters are dataclasses"
    return {field.name for field in dataclasses.fields(cls)}


def knob_infos(cls: type[object], hidden: Set[str] = frozenset()) -> list[KnobInfo]:
    """Return the knobs of a dataclass that a client may set."""
    assert dataclasses.is_dataclass(cls), "methods and sampling parameters are dataclasses"
    hints = typing.get_type_hints(cls)
    return [
        {
            "name": field.name,
            **type_fields(hints[field.name]),
            "default": json_default(field.default),
            "help": field.metadata.get("help", ""),
            "is_common": field.name in COMMON or field.metadata.get("tune") is not None,
            **range_fields(hints[field.name], field.metadata.get("help", "")),
        }
        for field in dataclasses.fields(cls)
        if field.name not in hidden and field.name not in SERVER_ONLY
    ]


def range_fields(hint: object, help: str) -> RangeFields:
    """Return the range of a number, as its help text states it."""
    is_number = type_fields(hint)["type"] in ("int", "float")
    found = range_of(help) if is_number else None
    if found is None:
        return {}
    limits: dict[Limit, float | None] = {
        "min": found.least,
        "max": found.most,
        "above": found.above,
        "below": found.below,
    }
    fields: RangeFields = {"range": found.text}
    for name, limit in limits.items():
        if limit is not None:
            fields[name] = limit
    return fields


def type_fields(hint: object) -> TypeFields:
    """Return the type of a field from its annotation."""
    if hint == Pairs:
        return {"type": "object"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        rest = [kind for kind in inner if kind is not type(None)]
        return {**type_fields(rest[0]), "nullable": len(rest) < len(inner)}
    if origin is typing.Literal:
        return {"type": "choice", "choices": list(inner)}
    if origin is tuple:
        return {"type": "list", "of": type_fields(inner[0])["type"]}
    return {"type": TYPE_NAMES.get(hint, "str")}


def json_default(default: object) -> JsonValue:
    """Return a default, or a given value, as JSON; null for objects, such as a wrapped decoder."""
    if default is None or isinstance(default, (bool, int, float, str)):
        return default
    return list(default) if isinstance(default, (tuple, list)) else None
