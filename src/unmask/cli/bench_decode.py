"""`unmask bench decode`: decoders side by side, as a table, JSON and a picture."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unmask import decoders
from unmask.bench.decode import TASKS, Watch, held_out, measure
from unmask.bench.report import (
    BASELINE,
    Comparison,
    DecodeSetting,
    Report,
    Result,
    compare,
)
from unmask.cli.decode import load
from unmask.cli.key_value import WORD
from unmask.cli.options import DecodeOptions
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import Source, whole
from unmask.method import MethodSpec

DECODER_WORD = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
SHARED_FLAGS = ("cache", "gen_length", "max_batch_size", "seed")
WIDE = 10_000
COLUMNS = (
    "decoder",
    "right",
    "forwards per answer",
    "tokens per forward",
    "queries per answer",
    "tokens/s",
    "speed-up",
    "accuracy differs from vanilla",
)
NONE = "-"


@dataclass(frozen=True)
class BenchDecodeOptions:
    """Options of `bench decode`. `json` may be `-`, standard output; `plot_x` None: tokens per second."""

    decoders: str
    model: str
    dtype: str | None
    device: str | None
    json: str | None
    plot: Path | None
    plot_x: str | None


def decode(options: BenchDecodeOptions, values: dict[str, Any]) -> None:
    """Measure, then show; what can be wrong is found before the model is read."""
    setting = setting_of(values)
    entries = parse_decoders(options.decoders)
    _check_files(options)
    model = DecodeOptions(
        model=options.model, dtype=options.dtype, device=options.device, cache=setting.cache
    )
    llm, _ = load(model)
    examples = held_out(setting)
    passes = len({BASELINE, *(entry.label for entry in entries)}) * (setting.repeat + 1)
    with _progress(passes, setting.repeat) as watch:
        report = measure(llm, entries, setting, examples, watch)
    for row in report.rows:
        if row.result is not None and not row.result.is_repeatable:
            _warn(f"{row.label} answered differently in a repeat; the first is counted")
    _show(report, options)


def setting_of(options: dict[str, Any]) -> DecodeSetting:
    """Build a setting from flags; `gen_length` None is the task's. Raises ConfigError."""
    if options["task"] not in TASKS:
        raise unknown_name("task", options["task"], TASKS)
    if options["gen_length"] is None:
        options = options | {"gen_length": TASKS[options["task"]].gen_length}
    for key in ("limit", "gen_length", "block_length", "repeat", "max_batch_size"):
        whole(key, options[key], 1)
    return DecodeSetting(**options)


def parse_decoders(text: str) -> list[MethodSpec]:
    """Parse `"threshold, vanilla(steps=16)"` as methods; `all` stands for every decoder there is.

    Raises ConfigError for what cannot be read, an unknown name, one that is there twice, and typed
    knobs that the decoder refuses.
    """
    entries: list[MethodSpec] = []
    labels: list[str] = []
    for word in split_list(text):
        match = DECODER_WORD.fullmatch(word)
        if match is None:
            raise ConfigError(
                f"decoder {word.strip()!r} cannot be read; write name or name(key=value, key=value), "
                f"with a comma between two"
            )
        if match[1] == "all":
            if match[2] is not None:
                raise ConfigError("all(...) takes no knobs; write them behind a decoder's name")
            entries += [MethodSpec.parse(Source({"decoder": n})) for n in decoders.names()]
        else:
            entries.append(_parsed(match[1], _knobs(match[1], match[2])))
    for entry in entries:
        if entry.label in labels:
            raise ConfigError(f"decoder {entry.label} is there twice; leave one out")
        labels.append(entry.label)
    return entries


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ConfigError(f"brackets do not match in {text!r}; every ( needs its )")
    return parts


def _parsed(name: str, knobs: dict[str, str]) -> MethodSpec:
    """Return the method of a word, with its notes printed. Raises ConfigError for a shared option."""
    own = decoders.knob_names(name)
    for key in knobs:
        if key in SHARED_FLAGS and key not in own:
            flag = "--" + key.replace("_", "-")
            raise ConfigError(
                f"{key}={knobs[key]} in {name}(...): all decoders of a run share it; use {flag} "
                f"{knobs[key]}"
            )
    method = MethodSpec.parse(Source({"decoder": name, **knobs}))
    for note in method.notes:
        print(f"unmask: note: {note.message}", file=sys.stderr)
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
            raise ConfigError(f"{key} is there twice in {name}(...); give it once")
        pairs[key] = match[2]
    return pairs


def _check_files(options: BenchDecodeOptions) -> None:
    if options.plot is None and options.plot_x is not None:
        raise ConfigError(f"--plot-x {options.plot_x} has no effect without --plot FILE")
    if options.plot is not None:
        from unmask.bench.plot import AXES, check_plot_file

        if options.plot_x is not None and options.plot_x not in AXES:
            raise unknown_name("axis of the plot", options.plot_x, AXES)
        check_plot_file(options.plot)
    files = {"plot": options.plot, "JSON": None if options.json in (None, "-") else options.json}
    for what, path in files.items():
        if path is not None:
            from unmask.view.trace import check_writable

            check_writable(Path(path), f"{what} file")


@contextmanager
def _progress(passes: int, repeats: int) -> Iterator[Watch]:
    """Show a bar on a terminal, else a line per pass; both on standard error."""
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
    print(f"unmask: warning: {text}", file=sys.stderr)


def _show(report: Report, options: BenchDecodeOptions) -> None:
    """Print the table before writing files, which may fail."""
    text = json.dumps({"command": command(report, options)} | report.as_json(), ensure_ascii=False)
    if options.json == "-":
        print(text, flush=True)
    else:
        show_table(report, Console(highlight=False))
        write_json(options.json, text)
    try:
        if options.plot is not None:
            from unmask.bench.plot import draw

            draw(report, options.plot, options.plot_x or "tokens_per_s")
    except OSError as error:
        raise ConfigError(f"{error.filename!r} cannot be written: {error.strerror}") from None


def command(report: Report, options: BenchDecodeOptions) -> str:
    """Return the command that repeats this measurement, without output files."""
    flags: dict[str, Any] = {
        "decoders": ",".join(row.label for row in report.rows),
        "model": options.model,
        "dtype": options.dtype,
        "device": options.device,
    }
    flags |= vars(report.setting)
    words = ["unmask", "bench", "decode"]
    for key, value in flags.items():
        if value is not None:
            words += ["--" + key.replace("_", "-"), str(value)]
    return shlex.join(words)


def show_table(report: Report, console: Console) -> None:
    """Print a table, in Markdown unless on a terminal; then the setting and the machine."""
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
        f"task {setting.task} | {setting.limit} held-out prompts | model {report.model} | cache "
        f"{setting.cache} | gen_length {setting.gen_length} | block_length {setting.block_length} | "
        f"batch {setting.max_batch_size} | seed {setting.seed} | repeats {setting.repeat}",
        f"{report.dtype} on {place} | {machine['num_threads']} threads, {machine['num_cpus']} "
        f"CPUs{busy} | {machine['platform']} | unmask {report.version}, torch {machine['torch']}, "
        f"Python {machine['python']} | {report.date}",
        "right: with its standard error | tokens/s: median (lowest..highest) of the repeats, to the end "
        "token | differs: mean paired difference in points, yes beyond 2 standard errors",
    )


def overhead(sizes: dict[str, int], names: str) -> None:
    """Measure the overhead of each decoder per forward, on a random model of the given sizes."""
    from unmask import decoders

    chosen = decoders.names() if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        decoders.decoder_class(name)
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1")
    if sizes["vocab_size"] < 1024 or sizes["width"] % 64:
        raise ConfigError(
            f"vocab_size={sizes['vocab_size']} must be at least 1024, width={sizes['width']} a multiple "
            f"of 64"
        )
    import torch

    from unmask.bench.overhead import measure, random_llm

    llm = random_llm(sizes["vocab_size"], sizes["width"], sizes["layers"], torch.bfloat16)
    print(
        f"random LLaDA: vocabulary {sizes['vocab_size']}, width {sizes['width']}, "
        f"{sizes['layers']} layers, bfloat16, {torch.get_num_threads()} threads; prompt "
        f"{sizes['prompt_length']}, gen_length {sizes['gen_length']}, batch {sizes['batch']}"
    )
    print("| decoder | forwards | forwards' seconds | added seconds | added share |")
    print("|---|---|---|---|---|")
    for name in chosen:
        row = measure(
            llm, name, sizes["gen_length"], sizes["prompt_length"], sizes["repeat"], sizes["batch"]
        )
        print(
            f"| {name} | {row.num_forwards} | {row.forward_s:.2f} | {row.added_s:.3f} | "
            f"{100 * row.share:.1f} % |",
            flush=True,
        )


def write_json(path: str | None, text: str) -> None:
    """Write a measurement's JSON to a file, if one is asked for. Raises ConfigError."""
    if path is None:
        return
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be written: {error.strerror}") from None
