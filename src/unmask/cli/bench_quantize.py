"""`unmask bench quantize` and `unmask bench head`: tables or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from unmask.bench.environment import machine
from unmask.bench.head import HeadSetting, measure_head
from unmask.bench.quantize import FormatResult, check_formats, measure_formats
from unmask.cli.bench_decode import check_json, one_decoder, setting_of, split_list, write_json
from unmask.cli.bench_options import SettingOptions
from unmask.errors import ConfigError
from unmask.models import resolve_model

HEAD = (
    "| form | weights, MB | of first | peak over start, MB | forward, ms | of first | same top | KL, nats "
    "| right |\n" + "|---" * 9 + "|"
)
EXPLAINED = (
    "peak: of loading and one forward, above a process with all modules imported | forward: of one "
    "canvas, median | same top, KL: to the first form, at masked positions of its answers | right: "
    "held-out answers"
)


def quantize(
    model: str, names: str, decoder: str, options: SettingOptions, as_json: str | None
) -> None:
    """Compare weight formats and print the result. Options are checked before a model is loaded."""
    setting = setting_of(options)
    method = one_decoder(decoder, "formats")
    forms = [name.strip() for name in split_list(names)]
    check_formats(forms)
    check_json(as_json)
    resolve_model(model)
    results = measure_formats(
        model,
        forms,
        method,
        setting,
        lambda name: print(f"measuring {name}", file=sys.stderr, flush=True),
    )
    facts = machine("cpu")
    report = {
        "model": model,
        "decoder": method.label,
        "setting": dataclasses.asdict(setting),
        "machine": facts,
        "forms": [dataclasses.asdict(item) | {"accuracy": item.accuracy} for item in results],
    }
    text = json.dumps(report, ensure_ascii=False)
    if as_json == "-":
        print(text, flush=True)
        return
    print("\n".join([HEAD, *(_row(item, results[0]) for item in results)]))
    print(
        f"\nmodel {model} | decoder {method.label} | {setting.limit} prompts of {setting.task} | "
        f"{results[0].num_rows} compared rows | repeats {setting.repeat} | {facts['processor']}, "
        f"{facts['num_threads']} threads, load {facts['load_average']}, torch {facts['torch']}"
    )
    print(EXPLAINED)
    write_json(as_json, text)


def _row(item: FormatResult, first: FormatResult) -> str:
    if item.problem is not None:
        return f"| {item.name} | not measured: {item.problem}" + " |" * 8
    peak = "" if item.peak_bytes is None else f"{item.peak_bytes / 1e6:.1f}"
    return (
        f"| {item.name} | {item.num_bytes / 1e6:.2f} | {item.num_bytes / first.num_bytes:.3f} | {peak} | "
        f"{1e3 * item.seconds:.1f} | {item.seconds / first.seconds:.2f} | {100 * item.same_top:.1f} % | "
        f"{item.divergence:.2g} | {100 * item.accuracy:.1f} % |"
    )


def head(setting: HeadSetting, as_json: bool, plot: Path | None) -> None:
    """Time the LM head and print a Markdown table or JSON."""
    if plot is not None:
        from unmask.bench.plot import check_plot_file

        check_plot_file(plot)
    rows = measure_head(setting)
    facts = machine(setting.device)
    where = (
        f"{setting.rows} rows of width {setting.width}, {setting.dtype} on "
        f"{facts['accelerator'] or facts['processor']}, {facts['num_threads']} thread(s)"
    )
    if as_json:
        report = {"setting": dataclasses.asdict(setting), "machine": facts, "rows": rows}
        print(json.dumps(report, ensure_ascii=False))
    else:
        print("| vocabulary | LM head ms | softmax ms | both ms |\n|---:|---:|---:|---:|")
        for row in rows:
            cells = (row[name] for name in ("head_ms", "softmax_ms", "both_ms"))
            print(
                f"| {row['vocab_size']:.0f} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"
            )
        print(
            f"\n{where}, median of {setting.repeat}, torch {facts['torch']}, load {facts['load_average']}"
        )
    if plot is not None:
        from unmask.evals.plots import draw_head

        try:
            draw_head(rows, where, plot)
        except OSError as error:
            raise ConfigError(f"{str(plot)!r} cannot be written: {error.strerror}") from None
