"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT | KEY=VALUE",
        help="The prompt in quotes ('-' or nothing: standard input), and knobs such as "
        "threshold=0.9, steps=64, block_length=32 or temperature=0.5.",
        show_default=False,
    ),
]
ModelFlag = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="M", help="Bundled name, folder or hub id. Default: demo."
    ),
]
DecoderFlag = Annotated[
    str | None,
    typer.Option("--decoder", "-d", metavar="D", help="Decoding method. Default: vanilla."),
]
CacheFlag = Annotated[
    str | None, typer.Option("--cache", "-c", metavar="C", help="Cache policy. Default: none.")
]
LengthFlag = Annotated[
    str | None,
    typer.Option("--gen-length", metavar="N", help="Positions to generate. Default: 128."),
]
SeedFlag = Annotated[
    str | None, typer.Option("--seed", metavar="S", help="Seed of all randomness. Default: 0.")
]
DtypeFlag = Annotated[
    str | None,
    typer.Option("--dtype", metavar="T", help="float32 (default on a CPU), bfloat16 or float16."),
]
DeviceFlag = Annotated[
    str | None, typer.Option("--device", metavar="X", help="cpu, cuda or cuda:N.")
]
RanksFlag = Annotated[
    str | None,
    typer.Option(
        "--tensor-parallel-size",
        metavar="N",
        help="Processes that hold a part of the model each; on GPUs one each. Default: 1.",
    ),
]
QuantizeFlag = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        "--quantize",
        metavar="K",
        help="Keep the weights in int8, or int4 (CPU, bfloat16). Default: as they are.",
    ),
]
RawFlag = Annotated[
    bool | None, typer.Option("--raw/--no-raw", help="Take the prompt without the chat template.")
]
StopFlag = Annotated[
    bool | None,
    typer.Option(
        "--stop-at-eos/--no-stop-at-eos", help="End as soon as the answer has. Default: stop."
    ),
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of the text.")
]
TraceFlag = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE", help="Write every forward's changes there as JSON lines."
    ),
]
LiveFlag = Annotated[
    bool | None,
    typer.Option("--live/--no-live", help="Show the canvas at work. Default: on a terminal."),
]
FpsFlag = Annotated[
    float | None,
    typer.Option("--fps", metavar="N", help="Most frames a second of the live canvas."),
]
