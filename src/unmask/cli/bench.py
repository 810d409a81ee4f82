"""`unmask bench`: benchmarks of decoders, caches and kernels on this machine, and of running servers.

The modules `bench_*` beside this one, which have heavy imports, do the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unmask.cli.bench_options import BenchModelOptions, OverheadOptions, SettingOptions
from unmask.cli.options import MODEL, PRINT_JSON, DeviceOptions, flat
from unmask.errors import ConfigError
from unmask.options import option

JSON_FILE = Parameter(name="--json", allow_leading_hyphen=True)
"""Annotation of an `as_json` that is a file name or `-`."""

bench = App(name="bench", help="Benchmark decoders, caches, kernels and servers.")


Model = Annotated[BenchModelOptions, flat(MODEL)]


@bench.command
def decode(
    *,
    decoders: Annotated[str, option("-d", metavar="LIST")] = "all",
    cache: Annotated[str, option("-c", metavar="C")] = "none",
    setting: Annotated[SettingOptions, flat()] = SettingOptions(),
    model: Model = BenchModelOptions(),
    as_json: Annotated[str | None, JSON_FILE, option(metavar="FILE")] = None,
    plot: Annotated[Path | None, option(metavar="FILE.png")] = None,
    plot_x: Annotated[str | None, option(metavar="X")] = None,
) -> None:
    """Compare decoders on held-out tasks of the demo model: accuracy, forwards, speed.

    The baseline, vanilla with one token per forward, is always measured too.

    Args:
        decoders: all, or comma-separated names with optional knobs: 'factor,threshold(threshold=0.8)'.
        cache: Cache policy of all decoders.
        as_json: Write all numbers to this file; '-': to standard output, instead of the table.
        plot: Plot quality against speed.
        plot_x: Speed axis of the plot: tokens_per_s or tokens_per_forward. Default: tokens_per_s.
    """
    from unmask.cli import bench_decode as command

    outputs = command.BenchOutputs(as_json, plot, plot_x)
    command.decode(decoders, model, setting, cache, outputs)


@bench.command(name="cache")
def compare_caches(
    *,
    caches: Annotated[str, option(metavar="LIST")] = "all",
    decoder: Annotated[str, option("-d", metavar="D")] = "vanilla",
    setting: Annotated[SettingOptions, flat()] = SettingOptions(limit=20),
    model: Model = BenchModelOptions(),
    as_json: Annotated[str | None, JSON_FILE, option(metavar="FILE")] = None,
) -> None:
    """Compare caches with `none`: answers, staleness (KL divergence), queries, speed, memory.

    Args:
        caches: all, or comma-separated names with optional knobs: 'dual,dllm(kp=50,kr=7)'.
        decoder: One decoder with optional knobs: 'threshold(threshold=0.8)'.
        as_json: Write all numbers to this file; '-': to standard output, instead of the table.
    """
    from unmask.cli import bench_cache as command

    command.cache(caches, decoder, model, setting, as_json)


@bench.command
def quantize(
    *,
    forms: Annotated[
        str, option(metavar="LIST")
    ] = "float32,bfloat16,int8,int8-bfloat16,int8-dynamic,int4",
    model: Annotated[str, option("-m", metavar="M")] = "demo",
    revision: Annotated[str | None, option(metavar="R")] = None,
    decoder: Annotated[str, option("-d", metavar="D")] = "threshold",
    limit: int = 50,
    repeat: int = 4,
    as_json: Annotated[str | None, JSON_FILE, option(metavar="FILE")] = None,
) -> None:
    """Compare dtypes and quantized weights (CPU): size, memory, speed, agreement, accuracy.

    Args:
        forms: Comma-separated formats of float32, bfloat16, int8, int8-bfloat16, int8-dynamic, int4 (both
            in bfloat16); the first is the reference.
        model: Bundled name, folder or hub id.
        revision: Branch, tag or commit of a hub id; the same as owner/name@R. Default: main.
        decoder: One decoder with optional knobs: 'threshold(threshold=0.8)'.
        limit: Number of prompts.
        repeat: Number of repeats, of five timed forwards each.
        as_json: Write all numbers to this file; '-': to standard output, instead of the table.
    """
    from unmask.cli import bench_quantize as command
    from unmask.models import with_revision

    setting = SettingOptions(limit=limit, repeat=repeat, max_batch_size=8)
    command.quantize(with_revision(model, revision), forms, decoder, setting, as_json)


@bench.command
def matrix(
    *,
    limit: Annotated[int, option(least=1)] = 4,
    gen_length: Annotated[int, option(least=2)] = 64,
) -> None:
    """Run every decoder with every cache; print queries, equal tokens and refusals (Markdown).

    Args:
        limit: Number of prompts.
        gen_length: Number of positions to generate; even.
    """
    from unmask.cli import bench_cache as command

    command.matrix(limit, gen_length)


@bench.command
def overhead(
    *,
    decoders: Annotated[str, option(metavar="A,B")] = "all",
    sizes: Annotated[OverheadOptions, flat()] = OverheadOptions(),
) -> None:
    """Measure the time that decoders add to forwards, on random weights (default: LLaDA's sizes).

    Args:
        decoders: all, or comma-separated names.
    """
    from unmask.cli import bench_decode as command

    command.overhead(sizes, decoders)


@bench.command
def head(
    *,
    width: int = 4096,
    rows: int = 32,
    sizes: Annotated[str | None, option(metavar="LIST")] = None,
    repeat: int = 7,
    device: Annotated[DeviceOptions, flat(MODEL)] = DeviceOptions(),
    as_json: Annotated[bool, PRINT_JSON] = False,
    plot: Annotated[Path | None, option(metavar="FILE.png")] = None,
) -> None:
    """Time the LM head and softmax by vocabulary size, on random weights.

    Args:
        width: Width of the hidden states.
        rows: Number of positions read per forward.
        sizes: Comma-separated vocabulary sizes.
        repeat: Number of timed repeats.
        as_json: Print JSON instead of the table.
        plot: Plot the times.
    """
    from unmask.bench.head import SIZES, HeadSetting
    from unmask.cli import bench_quantize as command

    words = [] if sizes is None else [word.strip() for word in sizes.split(",")]
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"--sizes {sizes} must be comma-separated whole numbers")
    setting = HeadSetting(
        width=width,
        rows=rows,
        sizes=tuple(map(int, words)) or SIZES,
        repeat=repeat,
        dtype=device.dtype or HeadSetting.dtype,
        device=device.device or HeadSetting.device,
    )
    command.head(setting, as_json, plot)


SERVER_COMMANDS = {
    "serve": (
        "bench_serve:serve_command",
        "Load-test a running server; print SGLang's table, with rows for blocks, forwards and waste.",
    ),
    "gsm8k": (
        "bench_tasks:gsm8k_command",
        "Evaluate a running server on few-shot GSM8K, as SGLang's few_shot_gsm8k does.",
    ),
    "mmlu": (
        "bench_tasks:mmlu_command",
        "Evaluate a running server on a sample of MMLU, zero-shot, one chat turn per question.",
    ),
    "algorithms": (
        "bench_algorithms:algorithms_command",
        "Serve a model with each algorithm, run GSM8K, MMLU and a load test, and write their tables.",
    ),
}
"""Commands of modules with more imports, with the first line of their docstrings."""
for _name, (_place, _summary) in SERVER_COMMANDS.items():
    bench.command(f"unmask.cli.{_place}", name=_name, help=_summary)
