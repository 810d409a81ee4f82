"""The flags of `unmask chat`; `cli.chat` does the work, and imports what is heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.cli.flags import (
    CacheFlag,
    DecoderFlag,
    DeviceFlag,
    DtypeFlag,
    FpsFlag,
    LiveFlag,
    ModelFlag,
    SeedFlag,
)


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Knobs such as threshold=0.9 or temperature=0.5.",
            show_default=False,
        ),
    ] = None,
    model: ModelFlag = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", metavar="URL", help="Talk to this server instead of loading a model."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="KEY", help="The server's key. Default: $UNMASK_API_KEY."
        ),
    ] = None,
    decoder: DecoderFlag = None,
    cache: CacheFlag = None,
    gen_length: Annotated[
        str | None,
        typer.Option(
            "--gen-length",
            "--max-tokens",
            metavar="N",
            help="Positions of an answer. Default: 128, or what a server has.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message to begin with.")
    ] = None,
    seed: SeedFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    live: LiveFlag = None,
    fps: FpsFlag = None,
) -> None:
    """Talk with a model, here or behind a URL; piped in, every line is a turn.

    At the prompt: /decoder NAME, /cache NAME, /set KNOB=VALUE, /unset KNOB, /show, /reset, /help, /quit.
    Control-C stops an answer, Control-D ends the talk.
    """
    from unmask.cli import chat as command

    flags = {
        "model": model,
        "decoder": decoder,
        "cache": cache,
        "gen_length": gen_length,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    command.run(words or [], flags, command.Place(base_url, api_key), system, (live, fps))
