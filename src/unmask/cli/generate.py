"""The commands `unmask generate` and `unmask infill`; `cli.decode` does the work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from unmask.cli.options import METHOD, MODEL, OUTPUT, LoadOptions, ShowOptions, flat
from unmask.options import option


@dataclass(frozen=True, kw_only=True)
class DecodeMethodOptions:
    """Decoder, cache and seed."""

    decoder: Annotated[str | None, option("-d", metavar="D")] = None
    """Decoding method; `unmask decoders D` lists its knobs. Default: vanilla."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache policy; `unmask caches C` lists its knobs. Default: none."""

    seed: Annotated[int, option(metavar="S")] = 0
    """Seed of all randomness."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DecodeMethodOptions):
    """The method, and the length and form of the answer."""

    gen_length: Annotated[int | None, option(metavar="N")] = None
    """Number of positions to generate. Default: 128."""

    stop_at_eos: bool = True
    """Stop when the answer is complete."""

    raw: bool = False
    """Use the prompt as it is, without the chat template."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """The model and its place."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Bundled name, folder or hub id."""


Model = Annotated[ModelOptions, flat(MODEL)]
Show = Annotated[ShowOptions, flat(OUTPUT)]


def generate(
    *words: Annotated[
        str,
        Parameter(
            name="PROMPT | KEY=VALUE",
            help="The prompt in quotes ('-' or nothing: standard input), and knobs of the method such as "
            "threshold=0.9, steps=64 or temperature=0.5.",
        ),
    ],
    method: Annotated[GenerateOptions, flat(METHOD)] = GenerateOptions(),
    model: Model = ModelOptions(),
    show: Show = ShowOptions(),
) -> None:
    """Answer a prompt, position by position, the surest first.

    An option may be a word too: seed=3 is --seed 3. All knobs of all methods: --help=all.
    """
    from unmask.cli import decode

    decode.generate(words, asdict(method) | asdict(model), decode.Shown(**asdict(show)))


def infill(
    *words: Annotated[
        str,
        Parameter(
            name="TEXT | KEY=VALUE",
            help="The text in quotes, {3} for a blank of 3 tokens, {{ and }} for braces; and knobs.",
        ),
    ],
    method: Annotated[DecodeMethodOptions, flat(METHOD)] = DecodeMethodOptions(),
    model: Model = ModelOptions(),
    show: Show = ShowOptions(),
) -> None:
    """Fill the blanks of a text: unmask infill "The {2} sat on the {1}."

    One space before a blank belongs to the blank's first token; two spaces keep one. All knobs of all
    methods: --help=all.
    """
    from unmask.cli import decode

    decode.infill(words, asdict(method) | asdict(model), decode.Shown(**asdict(show)))
