"""`unmask bench decode`: comparison of decoders, as a table, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unmask import decoders
from unmask.bench.decode import Watch, measure
from unmask.bench.examples import DEFAULT, check_task, default_length, examples_of
from unmask.bench.report import (
    BASELINE,
    Comparison,
    DecodeSetting,
    Report,
    Result,
    compare,
)
from unmask.cli.bench_options import BenchModelOptions, OverheadOptions, SettingOptions
from unmask.cli.decode import load
from unmask.cli.key_value import WORD
from unmask.cli.messages import say
from unmask.cli.options import DecodeOptions
from unmask.durable import check_writable
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import Source, split_commas, whole
from unmask.method import MethodSpec

DECODER_WORD = re.compile(r"\s*([A-Za-z_.~/][\w.~/:-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
SHARED_FLAGS = ("cache", "gen_length", "max_batch_size", "seed")
WIDE = 10_000
COLUMNS = (
    "decoder",
    "right",
    "forwards per answer",
    "tokens per forward",
    "queries per answer",
    "waste",
    "tokens/s",
    "speed-up",
    "accuracy differs from vanilla",
)
NONE = "-"


@dataclass(frozen=True)
class BenchOutputs:
    """Files of `bench decode`. `json` may be `-`, standard output; `plot_x` None: tokens per second."""

    json: str | None
    plot: Path | None
    plot_x: str | None


def decode(
    names: str,
    model: BenchModelOptions,
    options: SettingOptions,
    cache: str,
    outputs: BenchOutputs,
) -> None:
    """Compare decoders and print the result. Options are checked before the model is loaded."""
    setting = setting_of(options, cache)
    entries = parse_decoders(names)
    _check_files(outputs)
    examples = examples_of(setting)
    setting = dataclasses.replace(setting, limit=len(examples))
    llm, _ = load(DecodeOptions(**dataclasses.asdict(model), cache=cache))
    passes = len({BASELINE, *(entry.label for entry in entries)}) * (setting.repeat + 1)
    with _progress(passes, setting.repeat) as watch:
        report = measure(llm, entries, setting, examples, watch)
    for row in report.rows:
        if row.result is not None and not row.result.is_repeatable:
            _warn(
                f"{row.label} had other answers in a later repeat; the accuracy is that of the first"
            )
    _show(report, model, outputs)


def setting_of(options: SettingOptions, cache: str = "none") -> DecodeSetting:
    """Build a setting from flags; `gen_length` None stands for that of the task. Raises ConfigError."""
    if options.prompts is not None and options.task is not None:
        raise ConfigError(
            f"--prompts {options.prompts} and --task {options.task} contradict; give one of them"
        )
    task = options.prompts or options.task or DEFAULT
    setting = DecodeSetting(**vars(options) | {"task": task, "gen_length": 1, "cache": cache})
    check_task(setting)
    length = default_length(setting) if options.gen_length is None else options.gen_length
    setting = dataclasses.replace(setting, gen_length=length)
    for key in ("limit", "gen_length", "block_length", "repeat", "max_batch_size"):
        whole(key, getattr(setting, key), 1)
    return setting


def one_decoder(text: str, compared: str) -> MethodSpec:
    """Parse the only decoder of a comparison of something else. Raises ConfigError."""
    entries = parse_decoders(text)
    if len(entries) != 1:
        raise ConfigError(
            f"--decoder {text}: give one decoder, with which all {compared} are compared"
        )
    return entries[0]


def parse_decoders(text: str) -> list[MethodSpec]:
    """Parse `"threshold, vanilla(steps=16)"` as methods; `all` stands for every decoder.

    Raises ConfigError for a syntax error, an unknown or repeated name, and knobs that the decoder
    refuses.
    """
    entries: list[MethodSpec] = []
    labels: list[str] = []
    for word in split_list(text):
        match = DECODER_WORD.fullmatch(word)
        if match is None:
            raise ConfigError(
                f"decoder {word.strip()!r} cannot be parsed; write name or name(key=value, key=value), "
                f"separated by commas"
            )
        if match[1] == "all":
            if match[2] is not None:
                raise ConfigError("all(...) takes no knobs; write them after the name of a decoder")
            entries += [MethodSpec.parse(Source({"decoder": n})) for n in decoders.names()]
        else:
            entries.append(_parsed(match[1], _knobs(match[1], match[2])))
    for entry in entries:
        if entry.label in labels:
            raise ConfigError(f"decoder {entry.label} is listed twice; leave one out")
        labels.append(entry.label)
    return entries


def split_list(text: str) -> list[str]:
    """Split a text at commas outside of brackets. Raises ConfigError for unbalanced brackets."""
    parts = split_commas(text)
    if parts is None:
        raise ConfigError(f"unbalanced brackets in {text!r}; close every bracket")
    return parts


def _parsed(name: str, knobs: dict[str, str]) -> MethodSpec:
    """Return the method of a word and print its notes. Raises ConfigError for a shared option."""
    decoders.WORKSHOP.admit(name)
    own = decoders.knob_names(name)
    for key in knobs:
        if key in SHARED_FLAGS and key not in own:
            flag = "--" + key.replace("_", "-")
            raise ConfigError(
                f"{key}={knobs[key]} in {name}(...): this option applies to all decoders; use {flag} "
                f"{knobs[key]}"
            )
    method = MethodSpec.parse(Source({"decoder": name, **knobs}), is_trusted=True)
    for note in method.notes:
        say(note.message, "note")
    return method


def _knobs(name: str, inside: str | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in split_list(inside) if inside and inside.strip() else []:
        typed = "=".join(side.strip() for side in part.split("=", 1))
        match = WORD.fullmatch(typed)
        if match is None:
            raise ConfigError(f"{typed!r} in {name}(...) must be of the form key=value")
        key = match[1].replace("-", "_")
        if key in pairs:
            raise ConfigError(f"{key} is set twice in {name}(...); set it once")
        pairs[key] = match[2]
    return pairs


def check_json(path: str | None) -> None:
    """Raise ConfigError if the file of `--json` cannot be written; `-` and None always can."""
    if path not in (None, "-"):
        check_writable(Path(path), "JSON file")


def _check_files(outputs: BenchOutputs) -> None:
    if outputs.plot is None and outputs.plot_x is not None:
        raise ConfigError(f"--plot-x {outputs.plot_x} has no effect without --plot FILE")
    if outputs.plot is not None:
        from unmask.bench.plot import AXES, check_plot_file

        if outputs.plot_x is not None and outputs.plot_x not in AXES:
            raise unknown_name("axis of the plot", outputs.plot_x, AXES)
        check_plot_file(outputs.plot)
        check_writable(outputs.plot, "plot file")
    check_json(outputs.json)


@contextmanager
def _progress(passes: int, repeats: int) -> Iterator[Watch]:
    """Show a progress bar on a terminal, else print a line per pass; both on standard error."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=passes)
        left = passes

        @contextmanager
        def watch(entry: MethodSpec, repeat: int) -> Iterator[None]:
            nonlocal left
            part = f"repeat {repeat} of {repeats}" if repeat else "warm-up"
            bar.update(task, description=f"{entry.label}: {part}")
            began = time.perf_counter()
            try:
                yield
            except ConfigError:
                left -= repeats - repeat
                bar.update(task, total=left)
                raise
            finally:
                bar.advance(task)
            if not console.is_terminal and repeat:
                seconds = time.perf_counter() - began
                print(f"{entry.label}: {part}, {seconds:.1f} s", file=sys.stderr, flush=True)

        yield watch


def _warn(text: str) -> None:
    say(text, "warning")


def _show(report: Report, model: BenchModelOptions, outputs: BenchOutputs) -> None:
    """Print the table, then write the files: writing may fail."""
    text = json.dumps({"command": command(report, model)} | report.as_json(), ensure_ascii=False)
    if outputs.json == "-":
        print(text, flush=True)
    else:
        show_table(report, Console(highlight=False))
        write_json(outputs.json, text)
    try:
        if outputs.plot is not None:
            from unmask.bench.plot import draw

            draw(report, outputs.plot, outputs.plot_x or "tokens_per_s")
    except OSError as error:
        raise ConfigError(f"{error.filename!r} cannot be written: {error.strerror}") from None


def command(report: Report, model: BenchModelOptions) -> str:
    """Return the command that repeats this measurement, without output files."""
    flags: dict[str, object] = {
        "decoders": ",".join(row.label for row in report.rows),
        "model": model.model,
        "revision": model.revision,
        "dtype": model.dtype,
        "device": model.device,
        **vars(report.setting),
    }
    if report.setting.prompts is not None:
        del flags["task"]
    words = ["unmask", "bench", "decode"]
    for key, value in flags.items():
        if value is not None:
            words += ["--" + key.replace("_", "-"), str(value)]
    return shlex.join(words)


def show_table(report: Report, console: Console) -> None:
    """Print the table (Markdown unless on a terminal), the setting and the machine."""
    live = console.is_terminal
    if not live:
        console = Console(file=console.file, highlight=False, width=WIDE)
    table = Table(box=box.SIMPLE_HEAD if live else box.MARKDOWN, pad_edge=not live)
    for title in COLUMNS:
        side = "left" if title in (COLUMNS[0], COLUMNS[-1]) else "right"
        table.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in report.rows:
        if row.result is None:
            cells = [NONE] * (len(COLUMNS) - 2) + [f"cannot run here: {row.problem}"]
        elif row.label == BASELINE:
            cells = [*numbers(row.result), "1.00", "the baseline"]
        else:
            compared = compare(row.result, report.baseline)
            up = NONE if compared.speed_up is None else f"{compared.speed_up:.2f}"
            cells = [*numbers(row.result), up, verdict(compared)]
        table.add_row(*(Text(cell) for cell in (row.label, *cells)))
    console.print(table)
    if not live:
        console.print()
    for line in facts(report):
        console.print(Text(line, "dim" if live else ""), soft_wrap=True)


def numbers(result: Result) -> list[str]:
    """Return the cells of a result that need no baseline."""
    middle, low, high = result.tokens_per_s
    spread = f" ({low:.1f}..{high:.1f})" if len(result.seconds) > 1 else ""
    return [
        f"{100 * result.accuracy:.1f} ± {100 * result.accuracy_error:.1f} %",
        f"{result.forwards_per_answer:.1f}",
        f"{result.tokens_per_forward:.2f}",
        f"{result.queries_per_answer:.0f}",
        f"{100 * result.waste:.0f} %",
        f"{middle:.1f}{spread}",
    ]


def verdict(compared: Comparison) -> str:
    """Describe the paired difference in accuracy, in percentage points."""
    if compared.error is None:
        return "unknown: one prompt"
    word = "yes" if compared.is_different else "no"
    return f"{word}: {100 * compared.difference:+.1f} ± {100 * compared.error:.1f}"


def facts(report: Report) -> Sequence[str]:
    """Describe the setting and the machine."""
    setting, machine = report.setting, report.machine
    place = machine["accelerator"] or machine["processor"]
    busy = "" if machine["load_average"] is None else f", load {machine['load_average']} before"
    return (
        f"task {setting.task_name} | {prompts_of(setting)} | model {report.model} | cache "
        f"{setting.cache} | gen_length {setting.gen_length} | block_length {setting.block_length} | "
        f"batch {setting.max_batch_size} | seed {setting.seed} | repeats {setting.repeat}",
        f"{report.dtype} on {place} | {machine['num_threads']} threads, {machine['num_cpus']} "
        f"CPUs{busy} | {machine['platform']} | unmask {report.version}, torch {machine['torch']}, "
        f"Python {machine['python']} | {report.date}",
        f"right: {rule_of(setting)}with its standard error | waste: share of the queries right of an end "
        "token | tokens/s: median (lowest..highest) of the repeats, to the end token | differs: mean "
        "paired difference in points, yes beyond 2 standard errors",
    )


def prompts_of(setting: DecodeSetting) -> str:
    """Describe the prompts of a setting."""
    return f"{setting.limit} {'' if setting.is_own else 'held-out '}prompts"


def rule_of(setting: DecodeSetting) -> str:
    """Describe which answers of a file count as right; empty for bundled tasks."""
    if setting.prompts is not None:
        return "equal to the first row's answers, as the prompts have no targets, "
    return f"by {setting.metric}, " if setting.is_own else ""


def overhead(sizes: OverheadOptions, names: str) -> None:
    """Measure the overhead of each decoder per forward, on a random model of the given sizes."""
    from unmask import decoders

    chosen = decoders.names() if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        decoders.decoder_class(name)
    for key, value in vars(sizes).items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1")
    if sizes.vocab_size < 1024 or sizes.width % 64:
        raise ConfigError(
            f"vocab_size={sizes.vocab_size} must be at least 1024, width={sizes.width} a multiple of 64"
        )
    import torch

    from unmask.bench.overhead import measure, random_llm

    llm = random_llm(sizes.vocab_size, sizes.width, sizes.layers, torch.bfloat16)
    print(
        f"random LLaDA: vocabulary {sizes.vocab_size}, width {sizes.width}, {sizes.layers} layers, "
        f"bfloat16, {torch.get_num_threads()} threads; prompt {sizes.prompt_length}, gen_length "
        f"{sizes.gen_length}, batch {sizes.batch}"
    )
    print("| decoder | forwards | forwards' seconds | added seconds | added share |")
    print("|---|---|---|---|---|")
    for name in chosen:
        row = measure(llm, name, sizes.gen_length, sizes.prompt_length, sizes.repeat, sizes.batch)
        print(
            f"| {name} | {row.num_forwards} | {row.forward_s:.2f} | {row.added_s:.3f} | "
            f"{100 * row.share:.1f} % |",
            flush=True,
        )


def write_json(path: str | None, text: str) -> None:
    """Write JSON to a file; None: do nothing. Raises ConfigError."""
    if path is None:
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be written: {error.strerror}") from None
