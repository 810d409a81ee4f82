"""The `unmask` command. Imports nothing heavy, so that help and errors of typing are quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from unmask.cli import eval_app, frequencies, launcher
from unmask.cli.bench_commands import bench
from unmask.cli.chat_app import chat
from unmask.cli.flags import (
    CacheFlag,
    DecoderFlag,
    DeviceFlag,
    DtypeFlag,
    FpsFlag,
    JsonFlag,
    LengthFlag,
    LiveFlag,
    ModelFlag,
    QuantizeFlag,
    RanksFlag,
    RawFlag,
    SeedFlag,
    StopFlag,
    TraceFlag,
    Words,
)
from unmask.cli.help import Commands, DecodeCommand, TrainCommand
from unmask.cli.report import report
from unmask.cli.serve_app import serve
from unmask.cli.serve_file import ServeCommand
from unmask.errors import UnmaskError
from unmask.version import __version__

USAGE_STATUS, INTERRUPTED_STATUS = 2, 130

app = typer.Typer(
    name="unmask",
    cls=Commands,
    help="Decode, watch and train masked diffusion language models.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's table cuts the names of long flags
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"unmask {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command("generate", cls=DecodeCommand)
def _generate(
    words: Words = None,
    model: ModelFlag = None,
    decoder: DecoderFlag = None,
    cache: CacheFlag = None,
    gen_length: LengthFlag = None,
    seed: SeedFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    tensor_parallel_size: RanksFlag = None,
    quantize: QuantizeFlag = None,
    raw: RawFlag = None,
    stop_at_eos: StopFlag = None,
    as_json: JsonFlag = False,
    trace: TraceFlag = None,
    live: LiveFlag = None,
    fps: FpsFlag = None,
) -> None:
    """Answer a prompt, token by token in the order of the model's confidence."""
    from unmask.cli import decode

    flags = {
        "model": model,
        "decoder": decoder,
        "cache": cache,
        "gen_length": gen_length,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "tensor_parallel_size": tensor_parallel_size,
        "quantization": quantize,
        "raw": raw,
        "stop_at_eos": stop_at_eos,
    }
    decode.generate(words or [], flags, decode.Shown(as_json, trace, live, fps))


@app.command("infill", cls=DecodeCommand)
def _infill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT | KEY=VALUE",
            help="The text in quotes, {3} for a blank of 3 tokens, {{ and }} for braces; and knobs.",
            show_default=False,
        ),
    ] = None,
    model: ModelFlag = None,
    decoder: DecoderFlag = None,
    cache: CacheFlag = None,
    seed: SeedFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    tensor_parallel_size: RanksFlag = None,
    quantize: QuantizeFlag = None,
    as_json: JsonFlag = False,
    trace: TraceFlag = None,
    live: LiveFlag = None,
    fps: FpsFlag = None,
) -> None:
    """Fill the blanks of a text: unmask infill "The {2} sat on the {1}."

    One space before a blank belongs to the blank's first token; two spaces keep one.
    """
    from unmask.cli import decode

    flags = {
        "model": model,
        "decoder": decoder,
        "cache": cache,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "tensor_parallel_size": tensor_parallel_size,
        "quantization": quantize,
    }
    decode.infill(words or [], flags, decode.Shown(as_json, trace, live, fps))


app.command("chat", cls=DecodeCommand)(chat)
app.command("serve", cls=ServeCommand)(serve)
eval_app.register(app)


@app.command("models")
def _models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the bundled models."""
    from unmask.cli import models

    models.show(as_json)


@app.command("inspect")
def _inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub id.")
    ] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is: sizes, special ids, attention, chat template; reads no weights."""
    from unmask.cli import inspect

    inspect.show(model, as_json)


@app.command("convert")
def _convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Bundled name, folder or hub id.")
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder to make.")],
    form: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="family (as released), unmask (as it is held in memory), stacked "
            "(LLaDA2) or fused (LLaDA-MoE, SDAR with experts).",
        ),
    ],
) -> None:
    """Write a checkpoint with its weights in another form, bit by bit equal.

    Config, tokenizer and texts go along. Nothing is overwritten.
    """
    from unmask.cli import models

    models.run(source, target, form)


@app.command("frequencies")
def _frequencies(
    files: frequencies.Files = None,
    out: frequencies.Out = None,
    model: ModelFlag = None,
    is_estimate: frequencies.IsEstimate = False,
    field: frequencies.Field = None,
    seed: SeedFlag = None,
    dtype: DtypeFlag = None,
    device: DeviceFlag = None,
    is_forced: frequencies.IsForced = False,
) -> None:
    """Write background counts of tokens, which some decoders take.

    Seed, dtype and device are for --estimate; counting needs no more than the model's tokenizer.
    """
    run = frequencies.estimate if is_estimate else frequencies.count
    loading = {"seed": seed, "dtype": dtype, "device": device}
    run(files or [], out, model or "demo", field, loading, is_forced)


@app.command("train", cls=TrainCommand)
def _train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="recipe=NAME and changes to it; nothing: list the recipes and all keys.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a model by a recipe; an interrupted run goes on where it stopped.

    `unmask train` alone lists the recipes and their keys.
    """
    from unmask.cli import train

    train.run(words or [])


@app.command("demo")
def _demo(
    model: ModelFlag = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", metavar="N", help="Most frames a second. Default: 20."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="As fast as the model decodes.")] = False,
) -> None:
    """Watch a small model solve word problems, a Sudoku and an infill."""
    from unmask.cli import demo

    demo.run(model or "demo", fps, fast)


app.command("report")(report)


@app.command("decoders")
def _decoders() -> None:
    """Print the reference of all decoders: source, knobs, defaults, what composes (Markdown)."""
    from unmask.docgen.decoders import markdown

    print(markdown(), end="")


@app.command("caches")
def _caches() -> None:
    """Print the reference of all caches: source, knobs, defaults, memory (Markdown)."""
    from unmask.docgen.caches import markdown

    print(markdown(), end="")


@app.command("routes")
def _routes(
    metrics: Annotated[bool, typer.Option("--metrics", help="The metrics instead.")] = False,
) -> None:
    """Print the reference of the HTTP API: routes, fields, streams, limits, errors (Markdown)."""
    from unmask.cli import serve as command

    command.print_routes(metrics)


_CLICK_ERROR: Any = typer.BadParameter.__mro__[2]
"""click's ClickException, which newer versions of typer carry inside and older ones import."""


def _run(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        status = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="unmask",
            standalone_mode=False,
        )
    except UnmaskError as error:
        return _fail(str(error))
    except _CLICK_ERROR as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return USAGE_STATUS
        where = context.command_path if context is not None else "unmask"
        return _fail(f"{error.format_message().rstrip('.')}; see {where} --help")
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED_STATUS
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _fail(f"the device's memory is full ({error}); use a smaller gen_length or dtype")
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    line = " ".join(message.split())
    shown = "".join(char if char.isprintable() else "\ufffd" for char in line)
    who = f"unmask: rank {os.environ['RANK']}" if launcher.is_follower() else "unmask"
    print(f"{who}: error: {shown}", file=sys.stderr)
    return USAGE_STATUS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: this process's); returns the exit status.

    0 well, 2 for every mistake of the user's (one line on standard error), 130 when interrupted.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left. Python flushes once more at exit; give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
