"""The flags of `unmask bench`; `cli.bench` does the work, and imports what is heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.bench_server_commands import bench_gsm8k, bench_mmlu, bench_serve
from unmask.cli.flags import CacheFlag, DeviceFlag, DtypeFlag, ModelFlag
from unmask.cli.help import Commands, DecodeCommand

bench = typer.Typer(cls=Commands, help="Measure quality and speed.", no_args_is_help=True)
bench.command("serve")(bench_serve)
bench.command("gsm8k")(bench_gsm8k)
bench.command("mmlu")(bench_mmlu)

DecodersFlag = Annotated[
    str,
    typer.Option(
        "--decoders",
        "-d",
        metavar="LIST",
        help="all, or names with commas between; knobs in brackets: 'factor,threshold(threshold=0.8)'.",
    ),
]
TaskFlag = Annotated[
    str, typer.Option("--task", metavar="T", help="word_problem, sudoku or countdown.")
]
TaskLengthFlag = Annotated[
    int | None,
    typer.Option(
        "--gen-length", metavar="N", help="Positions to generate. Default: 64; puzzles: 32."
    ),
]
BlockFlag = Annotated[
    int,
    typer.Option("--block-length", metavar="N", help="Positions a block, where there are blocks."),
]
BatchFlag = Annotated[
    int, typer.Option("--max-batch-size", metavar="N", help="Rows that share a forward.")
]
JsonFileFlag = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write all numbers; '-': print them, no table."),
]
PlotFlag = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw quality against speed.")
]
PlotXFlag = Annotated[
    str | None,
    typer.Option("--plot-x", metavar="X", help="tokens_per_s (default) or tokens_per_forward."),
]


@bench.command("decode", cls=DecodeCommand)
def _bench_decode(
    decoders: DecodersFlag = "all",
    model: ModelFlag = None,
    cache: CacheFlag = None,
    task: TaskFlag = "word_problem",
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Prompts.")] = 50,
    gen_length: TaskLengthFlag = None,
    block_length: BlockFlag = 32,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", help="Timed passes.")] = 1,
    max_batch_size: BatchFlag = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the decoding.")] = 0,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    as_json: JsonFileFlag = None,
    plot: PlotFlag = None,
    plot_x: PlotXFlag = None,
) -> None:
    """Compare decoders on held-out tasks of the demo model: accuracy, forwards, speed.

    Vanilla at a token a forward is always measured along, as the baseline.
    """
    from unmask.cli import bench_decode as command

    setting = {
        "task": task,
        "cache": cache or "none",
        "limit": limit,
        "gen_length": gen_length,
        "block_length": block_length,
        "repeat": repeat,
        "max_batch_size": max_batch_size,
        "seed": seed,
    }
    wanted = command.BenchDecodeOptions(
        decoders, model or "demo", dtype, device, as_json, plot, plot_x
    )
    command.decode(wanted, setting)


@bench.command("cache")
def _bench_cache(
    caches: Annotated[
        str,
        typer.Option(
            "--caches",
            metavar="LIST",
            help="all, or names with commas between; knobs in brackets: 'dual,dllm(kp=50,kr=7)'.",
        ),
    ] = "all",
    decoder: Annotated[
        str, typer.Option("--decoder", "-d", metavar="D", help="One decoder, knobs in brackets.")
    ] = "vanilla",
    model: ModelFlag = None,
    task: TaskFlag = "word_problem",
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Prompts.")] = 20,
    gen_length: TaskLengthFlag = None,
    block_length: BlockFlag = 32,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", help="Timed passes.")] = 1,
    max_batch_size: BatchFlag = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of the decoding.")] = 0,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    as_json: JsonFileFlag = None,
) -> None:
    """Compare caches with none: answers, staleness (KL of the read rows), queries, speed, bytes."""
    from unmask.cli import bench_cache as command

    setting = {
        "task": task,
        "limit": limit,
        "gen_length": gen_length,
        "block_length": block_length,
        "repeat": repeat,
        "max_batch_size": max_batch_size,
        "seed": seed,
    }
    command.cache(caches, decoder, (model or "demo", dtype, device), setting, as_json)


@bench.command("quantize")
def _bench_quantize(
    forms: Annotated[
        str,
        typer.Option(
            "--forms",
            metavar="LIST",
            help="float32, bfloat16, int8, int8-bfloat16, int4, with commas between; the first is the "
            "reference.",
        ),
    ] = "float32,bfloat16,int8,int8-bfloat16,int4",
    model: ModelFlag = None,
    decoder: Annotated[
        str, typer.Option("--decoder", "-d", metavar="D", help="One decoder, knobs in brackets.")
    ] = "threshold",
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Prompts.")] = 50,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", help="Five timed forwards each.")
    ] = 4,
    as_json: JsonFileFlag = None,
) -> None:
    """Weigh a model in fewer bits (CPU): bytes, peak memory, time of a forward, agreement, accuracy."""
    from unmask.cli import bench_quantize as command

    setting = {
        "task": "word_problem",
        "limit": limit,
        "gen_length": None,
        "block_length": 32,
        "repeat": repeat,
        "max_batch_size": 8,
        "seed": 0,
    }
    command.quantize(model or "demo", forms, decoder, setting, as_json)


@bench.command("matrix")
def _bench_matrix(
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Prompts.")] = 4,
    gen_length: Annotated[
        int, typer.Option("--gen-length", metavar="N", min=2, help="Positions to generate, even.")
    ] = 64,
) -> None:
    """Every decoder with every cache: share of queries, equal tokens, what is refused (Markdown)."""
    from unmask.cli import bench_cache as command

    command.matrix(limit, gen_length)


@bench.command("overhead")
def _bench_overhead(
    decoders: Annotated[str, typer.Option("--decoders", metavar="A,B", help="Or all.")] = "all",
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="N")] = 126464,
    width: Annotated[int, typer.Option("--width", metavar="N")] = 4096,
    layers: Annotated[int, typer.Option("--layers", metavar="N")] = 2,
    gen_length: Annotated[int, typer.Option("--gen-length", metavar="N")] = 32,
    prompt_length: Annotated[int, typer.Option("--prompt-length", metavar="N")] = 224,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N")] = 1,
    batch: Annotated[int, typer.Option("--batch", metavar="N")] = 1,
) -> None:
    """What each decoder adds to the time of its forwards, on random weights (default: LLaDA's sizes)."""
    from unmask.cli import bench_decode as command

    sizes = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": layers,
        "repeat": repeat,
        "batch": batch,
    }
    command.overhead(sizes | {"gen_length": gen_length, "prompt_length": prompt_length}, decoders)


@bench.command("head")
def _bench_head(
    width: Annotated[int, typer.Option("--width", metavar="N", help="Width of the states.")] = 4096,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", help="Positions read a forward.")
    ] = 32,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", metavar="LIST", help="Vocabulary sizes, with commas between."),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", help="Timed repeats.")] = 7,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the times.")
    ] = None,
) -> None:
    """Time the LM head and softmax against the size of the vocabulary, on random weights."""
    from unmask.cli import bench_quantize as command

    setting: dict[str, object] = {"width": width, "rows": rows, "repeat": repeat}
    if sizes is not None:
        words = [word.strip() for word in sizes.split(",")]
        if not all(word.isdigit() for word in words):
            raise typer.BadParameter(f"{sizes!r} must be whole numbers with commas between")
        setting["sizes"] = tuple(map(int, words))
    setting |= {key: value for key, value in (("dtype", dtype), ("device", device)) if value}
    command.head(setting, as_json, plot)
