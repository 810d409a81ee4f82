"""Outcome of a search: preset file, report as JSON and Markdown, and a check on held-out prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import yaml

from unmask.durable import write_text
from unmask.method import split_cache_keys
from unmask.plain_text import markdown_text, one_line
from unmask.tune.goal import ACCURACY
from unmask.tune.measure import Bench, Interval, Measurement, PairedDifference, compare_paired
from unmask.tune.study import SearchResult, TrialPoint, Watch
from unmask.version import __version__

TURNS = 4
PRESET, NUMBERS, TABLE = "preset.yaml", "tune.json", "tune.md"


@dataclass(frozen=True)
class HeldOut:
    """The tuned knobs and the decoder's defaults on prompts outside of the search."""

    offset: int
    count: int
    tuned: Measurement
    defaults: Measurement
    difference: PairedDifference


def check(bench: Bench, result: SearchResult, count: int, watch: Watch) -> HeldOut | None:
    """Compare best point and defaults on `count` prompts after those of the search; None without a best."""
    best, offset = result.best, result.plan.num_prompts
    if best is None or not count:
        return None

    def progress(done: int, total: int) -> None:
        watch("held-out prompts", done, count)

    methods: list[dict[str, object]] = [{}, best.knobs]
    measurements: dict[int, Measurement] = {}
    parts = sorted({max(1, count * (turn + 1) // TURNS) for turn in range(TURNS)})
    for turn, part in enumerate(parts):  # alternating: a machine that slows down affects both
        for index in (0, 1) if turn % 2 else (1, 0):
            measurements[index] = bench.measure(methods[index], offset, part, progress)
    defaults, tuned = measurements[0], measurements[1]
    difference = compare_paired(tuned, defaults, result.plan.seed)
    return HeldOut(offset, count, tuned, defaults, difference)


def write(
    bench: Bench, result: SearchResult, held_out: HeldOut | None, command: str, folder: Path
) -> list[Path]:
    """Write tune.json, tune.md and, if a point satisfies the constraints, preset.yaml; return the paths."""
    record = as_json(bench, result, held_out, command)
    texts = {
        NUMBERS: json.dumps(record, indent=1, default=str) + "\n",
        TABLE: markdown(bench, result, held_out, command),
    }
    if result.best is not None:
        texts = {PRESET: preset(bench, result.best, result, held_out, command), **texts}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def preset(
    bench: Bench, best: TrialPoint, result: SearchResult, held_out: HeldOut | None, command: str
) -> str:
    """Return a preset for `generation=FILE`: the decoder, its knobs, and comments on their origin."""
    lines = [
        f"# Written by: {one_line(command)}",
        f"# {datetime.now(timezone.utc):%Y-%m-%d}, unmask {__version__}, model "
        f"{one_line(bench.settings.model)}, task {one_line(bench.settings.task_name)}, "
        f"prompts 0 to {best.num_prompts - 1}: "
        + ", ".join(f"{name} {best.metrics[name]:.4g}" for name in result.plan.objectives),
    ]
    if held_out is not None:
        lines.append(f"# Held-out prompts, against the defaults: {sentence(held_out)}")
    own, _ = split_cache_keys(bench.settings.method.given)
    knobs = {"strategy": bench.settings.method.decoder_name, **own, **best.knobs}
    return "\n".join(lines) + "\n" + yaml.safe_dump(knobs, sort_keys=False)


def as_json(
    bench: Bench, result: SearchResult, held_out: HeldOut | None, command: str
) -> dict[str, object]:
    """Return the content of tune.json."""
    best = result.best
    return {
        "command": command,
        "version": __version__,
        "settings": bench.settings.as_dict(),
        "plan": {**result.plan.identity(), "num_trials": result.plan.num_trials},
        "baseline": dict(result.baseline.metrics),
        "points": [dataclasses.asdict(point) for point in result.points],
        "front": [point.number for point in result.front],
        "best": None if best is None else best.number,
        "held_out": None if held_out is None else _held_out_json(held_out),
    }


def _held_out_json(held_out: HeldOut) -> dict[str, object]:
    return {
        "offset": held_out.offset,
        "count": held_out.count,
        "tuned": dict(held_out.tuned.metrics),
        "defaults": dict(held_out.defaults.metrics),
        "difference": dataclasses.asdict(held_out.difference),
    }


def sentence(held_out: HeldOut) -> str:
    """Return the held-out comparison as a sentence, each number with its 95 % interval."""
    difference = held_out.difference
    return (
        f"accuracy {_points(difference.accuracy)} points, tokens a forward "
        f"{_times(difference.per_forward)}, tokens a second {_times(difference.per_second)} "
        f"({held_out.count} prompts)"
    )


def _points(interval: Interval) -> str:
    value, low, high = (100 * v for v in dataclasses.astuple(interval))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _times(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] times"


def too_long(result: SearchResult) -> str:
    """Return a note on prompts that the context does not hold; empty if it holds all."""
    count = result.baseline.metrics.get("num_too_long", 0)
    where = f"{count:.0f} of the {result.plan.num_prompts} prompts"
    return f"{where} are too long for the context and count as wrong." if count else ""


def rows(result: SearchResult) -> list[list[str]]:
    """Return the cells of defaults and front: name, objectives, knobs."""
    table = [["defaults", *_cells(result.baseline.metrics, result), ""]]
    ordered = sorted(result.front, key=lambda point: -point.metrics[ACCURACY])
    for point in ordered:
        mark = "best: " if result.best is not None and point.number == result.best.number else ""
        knobs = ", ".join(f"{key}={value}" for key, value in point.knobs.items())
        table.append([f"{mark}point {point.number}", *_cells(point.metrics, result), knobs])
    return table


def _cells(metrics: Mapping[str, float], result: SearchResult) -> list[str]:
    return [
        f"{100 * metrics[name]:.1f} %" if name == ACCURACY else f"{metrics[name]:.3g}"
        for name in result.plan.objectives
    ]


def markdown(bench: Bench, result: SearchResult, held_out: HeldOut | None, command: str) -> str:
    """Return the report as a Markdown page."""
    plan, settings = result.plan, bench.settings
    num_stopped = len(result.points) - len(result.complete)
    lines = [
        f"# {settings.method.decoder_name} tuned on {markdown_text(settings.task_name)}",
        "",
        f"    {one_line(command)}",
        "",
        f"Model {markdown_text(settings.model)}, cache {settings.method.cache_name}, "
        f"batch {settings.batch_size}, seed {plan.seed}. "
        f"{len(result.points)} points, {num_stopped} of them stopped before their {plan.num_prompts} "
        f"prompts were all answered. Constraints: {', '.join(map(str, plan.constraints)) or 'none'}.",
        "",
        "| | " + " | ".join(plan.objectives) + " | knobs |",
        "|---" * (len(plan.objectives) + 2) + "|",
        *("| " + " | ".join(map(markdown_text, row)) + " |" for row in rows(result)),
        "",
    ]
    if note := too_long(result):
        lines += [note, ""]
    if result.best is None:
        lines.append("No point satisfies the constraints.")
    if held_out is not None:
        lines.append(f"On held-out prompts the best against the defaults: {sentence(held_out)}.")
    return "\n".join(lines) + "\n"
