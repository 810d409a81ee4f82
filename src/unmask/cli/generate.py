"""The commands `unmask generate` and `unmask infill`; `cli.decode` does the work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated

from cyclopts import Parameter

from unmask.cli.batch import BatchOptions
from unmask.cli.key_value import split_words
from unmask.cli.options import (
    METHOD,
    MODEL,
    OUTPUT,
    DecodeOptions,
    FillOptions,
    GenerateOptions,
    ModelOptions,
    ShowOptions,
    flat,
)
from unmask.errors import ConfigError

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
    batch: Annotated[BatchOptions, flat(OUTPUT)] = BatchOptions(),
) -> int | None:
    """Generate the answer to a prompt, in any order of positions.

    Options can also be words: seed=3 is --seed 3. All knobs of all methods: --help=all.
    """
    from unmask.cli import decode

    prompt, knobs = split_words(words)
    if batch != BatchOptions():
        return _generate_batch(prompt, knobs, method, model, show, batch)
    if prompt is None and knobs and not is_like_a_setting(first := next(iter(knobs))):
        prompt = f"{first}={knobs.pop(first)}"  # such as x=3
    options = DecodeOptions(**asdict(method), **asdict(model), knobs=knobs)
    decode.generate(prompt, options, show)
    return None


def _generate_batch(
    prompt: str | None,
    knobs: Mapping[str, str],
    method: GenerateOptions,
    model: ModelOptions,
    show: ShowOptions,
    batch: BatchOptions,
) -> int:
    """Decode a file of prompts. Raises ConfigError for options of a single decode."""
    from unmask.cli.batch import run

    if batch.prompts is None:
        raise ConfigError("--output and --batch-size are for --prompts FILE; leave them out")
    if prompt is not None:
        raise ConfigError(f"--prompts has the prompts; leave {prompt[:40]!r} out")
    if show != ShowOptions():
        raise ConfigError(
            "--json, --trace, --live and --fps have no effect with --prompts; leave them out"
        )
    return run(batch, DecodeOptions(**asdict(method), **asdict(model), knobs=dict(knobs)))


def is_like_a_setting(key: str) -> bool:
    """Return True for the name of a knob or option, and for one so close that it is a misspelling."""
    from unmask import caches, decoders
    from unmask.method import CACHE_PREFIX, knob_names

    names = {name for decoder in decoders.names() for name in knob_names(decoder)}
    for cache in caches.names():
        names |= {CACHE_PREFIX + item.name for item in fields(caches.cache_class(cache))}
    options = (GenerateOptions, ModelOptions, ShowOptions, BatchOptions)
    names |= {item.name for group in options for item in fields(group)}
    return bool(difflib.get_close_matches(key, names, n=1))


def infill(
    *words: Annotated[
        str,
        Parameter(
            name="TEXT | KEY=VALUE",
            help="The text in quotes, {3} for a blank of 3 tokens, {{ and }} for braces; and knobs.",
        ),
    ],
    method: Annotated[FillOptions, flat(METHOD)] = FillOptions(),
    model: Model = ModelOptions(),
    show: Show = ShowOptions(),
) -> None:
    """Fill the blanks of a text: unmask infill "The {2} sat on the {1}."

    One space before a blank belongs to the blank's first token; two spaces keep one. All knobs of all
    methods: --help=all.
    """
    from unmask.cli import decode

    text, knobs = split_words(words)
    options = DecodeOptions(**asdict(method), **asdict(model), knobs=knobs, stop_at_eos=False)
    decode.infill(text, options, show)
