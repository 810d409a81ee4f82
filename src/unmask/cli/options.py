"""Options and annotations that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Group, Parameter

from unmask.errors import ConfigError, cut_text
from unmask.knobs import Source
from unmask.options import option

KEY_VARIABLE = "UNMASK_API_KEY"
"""Environment variable of a server's key."""
PRINT_JSON = Parameter(name="--json")
"""Annotation of `as_json`."""
METHOD, MODEL, ENGINE, SERVER, REPLICAS, OUTPUT, DATA, LOAD, SEARCH = (
    Group(name, sort_key=number)
    for number, name in enumerate(
        ("Method", "Model", "Engine", "Server", "Replicas", "Output", "Data", "Load", "Search"), 1
    )
)
"""Sections of a help page, in the order in which they are printed."""


def flat(section: Group | None = None) -> Parameter:
    """Return the annotation of a nested dataclass: its fields are flags without a prefix."""
    return Parameter(name="*") if section is None else Parameter(name="*", group=section)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The dtype and the device of a model's weights."""

    dtype: Annotated[str | None, option(metavar="T")] = None
    """float32, bfloat16, half, or auto: as stored. Default: float32 on a CPU, else bfloat16."""

    device: Annotated[str | None, option(metavar="X")] = None
    """cpu, cuda or cuda:N. Default: cuda if available."""


class LoadKeywords(TypedDict):
    """Keyword arguments of `LLM` besides the model."""

    revision: str | None
    dtype: str | None
    device: str | None
    quantization: str | None
    tensor_parallel_size: int
    chat_template: str | None
    chat_template_kwargs: Mapping[str, object] | None
    lora: str | None


def read_object(flag: str, text: str | None) -> dict[str, object] | None:
    """Return the value of a flag that is a JSON object. Raises ConfigError."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        shown = cut_text(text)
        raise ConfigError(f"{flag} {shown!r} must be a JSON object, such as '{{\"name\": true}}'")
    return value


@dataclass(frozen=True, kw_only=True)
class LoadOptions(DeviceOptions):
    """Keyword arguments of `LLM` besides the model's name."""

    revision: Annotated[str | None, option(metavar="R")] = None
    """Branch, tag or commit of a hub id."""

    quantization: Annotated[str | None, option("--quantize", metavar="Q")] = None
    """int8; CPU: also int8-dynamic, int4. Default: off."""

    tensor_parallel_size: Annotated[int, option("--tp-size", least=1)] = 1
    """Processes (GPUs) that share the model."""

    chat_template: Annotated[str | None, option(metavar="T")] = None
    """One of the tokenizer's templates, or a file."""

    chat_template_kwargs: Annotated[str | None, option(metavar="JSON")] = None
    """Variables of the template, as a JSON object."""

    lora: Annotated[str | None, option(metavar="DIR")] = None
    """LoRA adapter of PEFT to merge into the weights."""

    def keywords(self) -> LoadKeywords:
        """Return the options as keyword arguments of `LLM`."""
        return {
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.device,
            "quantization": self.quantization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "chat_template": self.chat_template,
            "chat_template_kwargs": read_object(
                "--chat-template-kwargs", self.chat_template_kwargs
            ),
            "lora": self.lora,
        }


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """A model and how it is loaded."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Bundled name, folder or hub id."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Decoder, cache and seed."""

    decoder: Annotated[str | None, option("-d", metavar="D")] = None
    """Decoding method; `unmask decoders D` prints its knobs. Default: vanilla."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache policy; `unmask caches C` prints its knobs. Default: none."""

    seed: Annotated[int, option(metavar="S")] = 0
    """Seed of all randomness."""


@dataclass(frozen=True, kw_only=True)
class FillOptions(MethodOptions):
    """The method, and a constraint on every generated text."""

    json_schema: Annotated[str | None, option(metavar="S")] = None
    """Answer in JSON of this schema: a file, or JSON text."""

    regex: Annotated[str | None, option(metavar="R")] = None
    """Answer with a text that this regular expression matches as a whole."""

    choice: Annotated[str | None, option(metavar="A|B")] = None
    """Answer with one of these texts, with vertical bars between them."""

    grammar: Annotated[str | None, option(metavar="FILE")] = None
    """Answer with a text of this grammar, in GBNF: a file."""

    draft: Annotated[str | None, option(metavar="TEXT")] = None
    """Begin with this text as the answer, or in the blank; a decoder that revises changes it."""

    pinned: Annotated[tuple[str, ...], option("--pin", metavar="TEXT")] = ()
    """Never change this part of the draft; may be repeated."""

    max_edits: Annotated[int | None, option(metavar="N", least=0)] = None
    """Change at most this many tokens of the draft. Default: no limit."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(FillOptions):
    """The method, and the length and form of the answer."""

    gen_length: Annotated[int | None, option(metavar="N")] = None
    """Number of positions to generate. Default: 128, or the draft's."""

    stop_at_eos: bool = True
    """Stop at the end of the answer; otherwise decode every position."""

    raw: bool = False
    """Use the prompt as it is, without the chat template."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(GenerateOptions, ModelOptions):
    """All options of a decode; `knobs` by name, those of the cache as `cache.NAME`."""

    knobs: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> Source:
        """The decoder, cache and knobs that are set, as one source."""
        names = {"decoder": self.decoder, "cache": self.cache}
        chosen = {key: name for key, name in names.items() if name is not None}
        return Source({**chosen, **self.knobs})


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Presentation of a decode."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print text, ids, statistics and settings as one JSON object."""

    trace: Annotated[Path | None, option(metavar="FILE")] = None
    """Write the edits of every forward pass to this file, as JSON lines."""

    trace_alternatives: Annotated[int, option(least=0, most=20, metavar="K")] = 0
    """Write also the K likeliest tokens of each commit, at most 20. Default: 0."""

    live: bool | None = None
    """Draw the canvas while it is decoded. Default: on a terminal."""

    fps: Annotated[float | None, option(metavar="N")] = None
    """Maximum number of frames per second of the live canvas. Default: one per forward pass."""
