"""What the model, the decoders and the caches take, as data, for pages and clients to build forms from."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

from unmask import caches, decoders
from unmask.canvas import ModelFacts, new_canvas
from unmask.errors import ConfigError
from unmask.sampling.params import SamplingParams

if TYPE_CHECKING:
    from unmask.engine.llm import LLM
    from unmask.models.spec import ModelSpec

SERVER_ONLY = {"frequencies": None, "drafter": "lookup"}
"""Knobs that name files or models of the server's machine, with the value a client may give."""
NAMES = {int: "int", float: "float", bool: "bool", str: "str"}


def schema(llm: LLM, defaults: dict[str, Any], model_id: str, max_length: int) -> dict[str, Any]:
    """Model facts, decoders and caches with their knobs, the knobs of every decoder, and the defaults.

    A knob is `{name, type, default, help}`, with `choices` where the values are listed, `of` for a list's
    items, and `nullable`.
    """
    return {
        "model": model_facts(llm, model_id, max_length),
        "defaults": defaults,
        "decoders": [decoder_facts(name) for name in decoders.names()],
        "caches": [cache_facts(name, llm) for name in caches.names()],
        "shared": knobs_of(SamplingParams),
    }


def model_facts(llm: LLM, model_id: str, max_length: int) -> dict[str, Any]:
    """What a client must know of the model; `mask` is the token's text."""
    spec, tokenizer = llm.spec, llm.tokenizer
    known = 0 if tokenizer is None else len(tokenizer)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    return {
        "id": model_id,
        "family": spec.family,
        "block_size": spec.block_size,
        "max_length": max_length,
        "vocab_size": spec.vocab_size,
        "mask": text_of(tokenizer, spec.mask_id) if spec.mask_id < known else None,
        "mask_id": spec.mask_id,
        "end_ids": sorted(llm.stop_ids),
        "has_chat_template": has_template,
        "attention": "full" if spec.block_size is None else "block_causal",
    }


def text_of(tokenizer: Any, token_id: int) -> str | None:
    """A token as the vocabulary writes it; None where the tokenizer does not tell."""
    spell = getattr(tokenizer, "convert_ids_to_tokens", None)
    return None if spell is None else str(spell(token_id))


def decoder_facts(name: str) -> dict[str, Any]:
    """A decoder: its title, source, and own knobs (those of `SamplingParams` are shared)."""
    cls = decoders.decoder_class(name)
    title, source = title_and_source(cls)
    return {
        "name": name,
        "title": title,
        "source": source,
        "finds_length": decoders.finds_length(name),
        "wraps": "inner" in {field.name for field in dataclasses.fields(cls)},
        "knobs": knobs_of(cls, {field.name for field in dataclasses.fields(SamplingParams)}),
    }


def cache_facts(name: str, llm: LLM) -> dict[str, Any]:
    """A cache: its title, source, knobs, and whether decoding with it equals decoding without.

    `refused`: why this model cannot be decoded with it, whatever its knobs; None: it can.
    """
    cls = caches.cache_class(name)
    title, source = title_and_source(cls)
    exact = getattr(cls, "exact", None)
    return {
        "name": name,
        "title": title,
        "source": source,
        "exact": exact if isinstance(exact, bool) else None,
        "refused": refusal(name, llm.spec),
        "knobs": knobs_of(cls),
    }


def refusal(name: str, spec: ModelSpec) -> str | None:
    """What a cache says when it is to start on the smallest canvas of a model, if it refuses to."""
    canvas = new_canvas([0], [True], 0, spec.mask_id)
    facts = ModelFacts(spec.vocab_size, spec.eos_id, None, spec.block_size, spec.max_length)
    try:
        caches.bind(caches.make_cache(name), spec.block_size).start(canvas, facts)
    except ConfigError as error:
        return str(error)
    return None


def title_and_source(cls: type[Any]) -> tuple[str, str]:
    """First line of the method's file, and what it names as its source."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    title, _, rest = text.partition("\n\n")
    match = re.search(r"Source: (.*?)(?:(?<!Eq)\. |: |$)", " ".join(rest.split()))
    source = match[1].rstrip(".") if match else ""
    if source.count("(") > source.count(")"):
        source = source[: source.rindex("(")].rstrip()
    return " ".join(title.split()).rstrip("."), source


def knobs_of(cls: type[Any], hidden: set[str] | None = None) -> list[dict[str, Any]]:
    """The knobs of a dataclass that a client may set."""
    hints = typing.get_type_hints(cls)
    return [
        {
            "name": field.name,
            **type_facts(hints[field.name]),
            "default": shown(field.default),
            "help": field.metadata.get("help", ""),
        }
        for field in dataclasses.fields(cls)
        if field.name not in (hidden or set()) and field.name not in SERVER_ONLY
    ]


def type_facts(hint: Any) -> dict[str, Any]:
    """`type` and what it allows, of a field's annotation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        rest = [kind for kind in inner if kind is not type(None)]
        return {**type_facts(rest[0]), "nullable": len(rest) < len(inner)}
    if origin is typing.Literal:
        return {"type": "choice", "choices": list(inner)}
    if origin is tuple:
        return {"type": "list", "of": type_facts(inner[0])["type"]}
    return {"type": NAMES.get(hint, "str")}


def shown(default: Any) -> Any:
    """A default as JSON; a wrapped decoder or cache by name."""
    if default is None or isinstance(default, (bool, int, float, str)):
        return default
    if isinstance(default, tuple):
        return list(default)
    return None
