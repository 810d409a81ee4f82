"""`unmask bench`: measurements of methods, caches and kernels here, and of running servers.

The work, with its heavy imports, is in the modules `bench_*` beside this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unmask.bench.report import DecodeSetting
from unmask.cli.options import MODEL, PRINT_JSON, DeviceOptions, flat
from unmask.errors import ConfigError
from unmask.options import option

JSON_FILE = Parameter(name="--json", allow_leading_hyphen=True)
"""Annotation of `as_json`, a file or `-`."""

bench = App(name="bench", help="Measure quality and speed.")


@dataclass(frozen=True, kw_only=True)
class BenchModelOptions(DeviceOptions):
    """The model that is measured."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Bundled name, folder or hub id."""


@dataclass(frozen=True, kw_only=True)
class SettingOptions:
    """The setting that all methods of a comparison share."""

    task: Annotated[str, option(metavar="T")] = DecodeSetting.task
    """word_problem, sudoku or countdown."""

    limit: int = DecodeSetting.limit
    """Number of prompts."""

    gen_length: Annotated[int | None, option(metavar="N")] = None
    """Number of positions to generate. Default: 64; puzzles: 32."""

    block_length: int = DecodeSetting.block_length
    """Positions per block, where there are blocks."""

    repeat: int = DecodeSetting.repeat
    """Number of timed passes."""

    max_batch_size: int = DecodeSetting.max_batch_size
    """Number of rows in a forward pass."""

    seed: Annotated[int, option(metavar="S")] = DecodeSetting.seed
    """Seed of the decoding."""


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

    Vanilla at a token a forward is always measured along, as the baseline.

    Args:
        decoders: all, or names with commas between; knobs in brackets: 'factor,threshold(threshold=0.8)'.
        cache: Cache policy.
        as_json: Write all numbers; '-': print them, no table.
        plot: Draw quality against speed.
        plot_x: tokens_per_s or tokens_per_forward. Default: tokens_per_s.
    """
    from unmask.cli import bench_decode as command

    options = command.BenchDecodeOptions(
        decoders, model.model, model.dtype, model.device, as_json, plot, plot_x
    )
    command.decode(options, asdict(setting) | {"cache": cache})


@bench.command(name="cache")
def compare_caches(
    *,
    caches: Annotated[str, option(metavar="LIST")] = "all",
    decoder: Annotated[str, option("-d", metavar="D")] = "vanilla",
    setting: Annotated[SettingOptions, flat()] = SettingOptions(limit=20),
    model: Model = BenchModelOptions(),
    as_json: Annotated[str | None, JSON_FILE, option(metavar="FILE")] = None,
) -> None:
    """Compare caches with none: answers, staleness (KL of the read rows), queries, speed, bytes.

    Args:
        caches: all, or names with commas between; knobs in brackets: 'dual,dllm(kp=50,kr=7)'.
        decoder: One decoder, knobs in brackets.
        as_json: Write all numbers; '-': print them, no table.
    """
    from unmask.cli import bench_cache as command

    place = (model.model, model.dtype, model.device)
    command.cache(caches, decoder, place, asdict(setting), as_json)


@bench.command
def quantize(
    *,
    forms: Annotated[str, option(metavar="LIST")] = "float32,bfloat16,int8,int8-bfloat16,int4",
    model: Annotated[str, option("-m", metavar="M")] = "demo",
    decoder: Annotated[str, option("-d", metavar="D")] = "threshold",
    limit: int = 50,
    repeat: int = 4,
    as_json: Annotated[str | None, JSON_FILE, option(metavar="FILE")] = None,
) -> None:
    """Weigh a model in fewer bits (CPU): bytes, peak memory, time of a forward, agreement, accuracy.

    Args:
        forms: float32, bfloat16, int8, int8-bfloat16, int4, with commas between; the first is the
            reference.
        model: Bundled name, folder or hub id.
        decoder: One decoder, knobs in brackets.
        limit: Number of prompts.
        repeat: Five timed forwards each.
        as_json: Write all numbers; '-': print them, no table.
    """
    from unmask.cli import bench_quantize as command

    setting = SettingOptions(limit=limit, repeat=repeat, max_batch_size=8)
    command.quantize(model, forms, decoder, asdict(setting), as_json)


@bench.command
def matrix(
    *,
    limit: Annotated[int, option(least=1)] = 4,
    gen_length: Annotated[int, option(least=2)] = 64,
) -> None:
    """Run every decoder with every cache: share of queries, equal tokens, what is refused (Markdown).

    Args:
        limit: Number of prompts.
        gen_length: Number of positions to generate, even.
    """
    from unmask.cli import bench_cache as command

    command.matrix(limit, gen_length)


@bench.command
def overhead(
    *,
    decoders: Annotated[str, option(metavar="A,B")] = "all",
    vocab_size: int = 126464,
    width: int = 4096,
    layers: int = 2,
    gen_length: int = 32,
    prompt_length: int = 224,
    repeat: int = 1,
    batch: int = 1,
) -> None:
    """Time what each decoder adds to its forwards, on random weights (default: LLaDA's sizes).

    Args:
        decoders: Names with commas between, or all.
        vocab_size: Size of the vocabulary.
        width: Width of the states.
        layers: Number of layers.
        gen_length: Number of positions to generate.
        prompt_length: Number of positions of the prompt.
        repeat: Number of timed passes.
        batch: Number of rows in a forward pass.
    """
    from unmask.cli import bench_decode as command

    sizes = {"vocab_size": vocab_size, "width": width, "layers": layers, "repeat": repeat}
    sizes |= {"batch": batch, "gen_length": gen_length, "prompt_length": prompt_length}
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
    """Time the LM head and softmax against the size of the vocabulary, on random weights.

    Args:
        width: Width of the states.
        rows: Number of positions read per forward.
        sizes: Vocabulary sizes, with commas between.
        repeat: Number of timed repeats.
        as_json: Print JSON.
        plot: Draw the times.
    """
    from unmask.cli import bench_quantize as command

    setting: dict[str, object] = {"width": width, "rows": rows, "repeat": repeat}
    if sizes is not None:
        words = [word.strip() for word in sizes.split(",")]
        if not all(word.isdigit() for word in words):
            raise ConfigError(f"--sizes {sizes} must be whole numbers with commas between")
        setting["sizes"] = tuple(map(int, words))
    setting |= {key: value for key, value in asdict(device).items() if value}
    command.head(setting, as_json, plot)


SERVER_COMMANDS = {
    "serve": (
        "bench_serve:serve_command",
        "Put a running server under load: SGLang's table, with blocks, forwards and waste besides.",
    ),
    "gsm8k": (
        "bench_tasks:gsm8k_command",
        "Ask a running server GSM8K with few shots, as SGLang's few_shot_gsm8k does.",
    ),
    "mmlu": (
        "bench_tasks:mmlu_command",
        "Ask a running server a sample of MMLU, a chat turn a question, no shots.",
    ),
}
"""Commands in modules that import more, with the first line of their docstrings."""
for _name, (_place, _summary) in SERVER_COMMANDS.items():
    bench.command(f"unmask.cli.{_place}", name=_name, help=_summary)
