"""Lines of a trace file as values: the header, and the fields that a line has in addition to its step's.

`unmask.view.trace` writes and reads such files; a server sends the same fields to clients that write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from unmask.canvas import Canvas
from unmask.engine.origin import ModelOrigin
from unmask.engine.outputs import Step
from unmask.method import MethodSpec

if TYPE_CHECKING:
    from unmask.engine.token_text import TokenTexts

FORMAT = "unmask-trace"
VERSION = 1


@dataclass(frozen=True)
class Header:
    """First line of a trace file.

    `knobs`: all settings in force, defaults included, those of the cache as `cache.NAME`; `method`: the
    decoder with the knobs that differ from their defaults, in the syntax of `--decoder`. `texts`: the text
    of each token of the first canvas, by id; `ends`: the ids of end tokens; `special`: ids that are not
    shown. `origin`: digests of the model's files, dtype and device (`engine.origin.ModelOrigin`);
    `versions`: of packages; `constraint`: kind and definition of that on the answer. From `texts` on,
    empty or None in files of earlier versions.
    """

    model: str
    decoder: str
    cache: str
    knobs: dict[str, object]
    seed: int
    prompt_ids: list[int]
    gen_length: int
    mask_id: int
    tokens: list[int]
    open: list[int]
    method: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    special: list[int] = field(default_factory=list)
    stop_at_eos: bool = True
    constraint: dict[str, str] = field(default_factory=dict)
    origin: ModelOrigin | None = None
    versions: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION


class OpeningFields(TypedDict):
    """The fields of a header that describe the canvas before the first forward."""

    tokens: list[int]
    open: list[int]
    texts: dict[str, str]
    special: list[int]


class ExtraFields(TypedDict, total=False):
    """Fields that not every line has.

    `texts` of appended tokens, `bytes` in hexadecimal digits of tokens that are part of a character, and
    `alternatives`: id, probability and text of the likeliest tokens, by position.
    """

    texts: dict[str, str]
    bytes: dict[str, str]
    alternatives: dict[str, list[tuple[int, float, str]]]


def header_of(
    method: MethodSpec, canvas: Canvas, ends: frozenset[int], *, model: str, seed: int
) -> Header:
    """Return the header of a decode that begins with the canvas of its request."""
    return Header(
        model=model,
        decoder=method.decoder_name,
        cache=method.describe_cache(),
        knobs=method.all_knobs(),
        seed=seed,
        prompt_ids=canvas.tokens[: canvas.prompt_length].tolist(),
        gen_length=len(canvas) - canvas.prompt_length,
        mask_id=canvas.mask_id,
        tokens=canvas.tokens.tolist(),
        open=canvas.open_positions().tolist(),
        method=method.describe(),
        ends=sorted(ends),
    )


def opening_fields(canvas: Canvas, texts: TokenTexts) -> OpeningFields:
    """Return the fields of the canvas before the first forward: the decoder's `first_canvas`."""
    tokens, is_open = canvas.tokens.tolist(), canvas.open.tolist()
    decided = {id_ for id_, hidden in zip(tokens, is_open, strict=True) if not hidden}
    return {
        "tokens": tokens,
        "open": canvas.open_positions().tolist(),
        "texts": {str(id_): texts.text(id_) for id_ in sorted(decided)},
        "special": sorted(decided & texts.special),
    }


def extra_fields(step: Step, texts: TokenTexts) -> ExtraFields:
    """Return the fields that the line of a step has besides those of every line."""
    fields: ExtraFields = {}
    if step.appended:
        fields["texts"] = {str(id_): texts.text(id_) for id_ in step.appended}
    written = [item.token for item in (*step.committed, *step.replaced)] + list(step.appended)
    parts = {str(id_): texts.data(id_).hex() for id_ in written if "\ufffd" in texts.text(id_)}
    if parts:
        fields["bytes"] = parts
    if step.alternatives:
        fields["alternatives"] = {
            str(position): [(id_, share, texts.text(id_)) for id_, share in pairs]
            for position, pairs in step.alternatives.items()
        }
    return fields
