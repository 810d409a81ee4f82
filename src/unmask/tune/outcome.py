"""What a search found: preset file, numbers as JSON and Markdown, the check on other prompts."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from unmask.tune.goal import ACCURACY
from unmask.tune.measure import Bench, Interval, Measured, Versus, versus
from unmask.tune.study import SearchResult, TrialPoint, Watch
from unmask.version import __version__

TURNS = 4
PRESET, NUMBERS, TABLE = "preset.yaml", "tune.json", "tune.md"


@dataclass(frozen=True)
class HeldOut:
    """The tuned knobs and the decoder's defaults on prompts that the search never saw."""

    offset: int
    count: int
    tuned: Measured
    defaults: Measured
    difference: Versus


def check(bench: Bench, found: SearchResult, count: int, watch: Watch) -> HeldOut | None:
    """The best point and the defaults on `count` prompts behind the search's; None without a best."""
    best, offset = found.best, found.plan.num_prompts
    if best is None or not count:
        return None

    def told(done: int, total: int) -> None:
        watch("held-out prompts", done, count)

    methods: list[dict[str, Any]] = [{}, best.knobs]
    measured: dict[int, Measured] = {}
    parts = sorted({max(1, count * (turn + 1) // TURNS) for turn in range(TURNS)})
    for turn, part in enumerate(parts):  # in turns: a machine that slows down does so to both
        for which in (0, 1) if turn % 2 else (1, 0):
            measured[which] = bench.measure(methods[which], offset, part, told)
    defaults, tuned = measured[0], measured[1]
    return HeldOut(offset, count, tuned, defaults, versus(tuned, defaults, found.plan.seed))


def write(
    bench: Bench, found: SearchResult, held_out: HeldOut | None, command: str, folder: Path
) -> list[Path]:
    """Write tune.json, tune.md and, where a point keeps to the constraints, preset.yaml."""
    made = []
    if found.best is not None:
        made.append(folder / PRESET)
        made[-1].write_text(preset(bench, found.best, found, held_out, command), encoding="utf-8")
    made.append(folder / NUMBERS)
    record = as_json(bench, found, held_out, command)
    made[-1].write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    made.append(folder / TABLE)
    made[-1].write_text(markdown(bench, found, held_out, command), encoding="utf-8")
    return made


def preset(
    bench: Bench, best: TrialPoint, found: SearchResult, held_out: HeldOut | None, command: str
) -> str:
    """The file that `generation=FILE` takes: the decoder, its knobs, and where they come from."""
    lines = [
        f"# Written by: {command}",
        f"# {datetime.now(timezone.utc):%Y-%m-%d}, unmask {__version__}, model "
        f"{bench.settings.model}, task {bench.settings.task}, prompts 0 to {best.num_prompts - 1}: "
        f"{_numbers(best.metrics, found)}",
    ]
    if held_out is not None:
        lines.append(f"# Held-out prompts, against the defaults: {sentence(held_out)}")
    own = {k: v for k, v in bench.settings.method.given.items() if not k.startswith("cache.")}
    knobs = {"strategy": bench.settings.method.decoder_name, **own, **best.knobs}
    return "\n".join(lines) + "\n" + yaml.safe_dump(knobs, sort_keys=False)


def as_json(
    bench: Bench, found: SearchResult, held_out: HeldOut | None, command: str
) -> dict[str, Any]:
    """Everything, for machines."""
    best = found.best
    return {
        "command": command,
        "version": __version__,
        "settings": bench.settings.as_dict(),
        "plan": {**found.plan.identity(), "num_trials": found.plan.num_trials},
        "baseline": dict(found.baseline.metrics),
        "points": [dataclasses.asdict(point) for point in found.points],
        "front": [point.number for point in found.front],
        "best": None if best is None else best.number,
        "held_out": None if held_out is None else _held_out_json(held_out),
    }


def _held_out_json(held_out: HeldOut) -> dict[str, Any]:
    return {
        "offset": held_out.offset,
        "count": held_out.count,
        "tuned": dict(held_out.tuned.metrics),
        "defaults": dict(held_out.defaults.metrics),
        "difference": dataclasses.asdict(held_out.difference),
    }


def sentence(held_out: HeldOut) -> str:
    """The held-out comparison in words, each number with its 95 % interval."""
    told = held_out.difference
    return (
        f"accuracy {_points(told.accuracy)} points, tokens a forward {_times(told.per_forward)}, "
        f"tokens a second {_times(told.per_second)} ({held_out.count} prompts)"
    )


def _points(interval: Interval) -> str:
    value, low, high = (100 * v for v in dataclasses.astuple(interval))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _times(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] times"


def _numbers(metrics: dict[str, float], found: SearchResult) -> str:
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in found.plan.objectives)


def rows(found: SearchResult) -> list[list[str]]:
    """The defaults and the front as cells: name, objectives, knobs."""
    table = [["defaults", *_cells(dict(found.baseline.metrics), found), ""]]
    ordered = sorted(found.front, key=lambda point: -point.metrics[ACCURACY])
    for point in ordered:
        mark = "best: " if found.best is not None and point.number == found.best.number else ""
        knobs = ", ".join(f"{key}={value}" for key, value in point.knobs.items())
        table.append([f"{mark}point {point.number}", *_cells(point.metrics, found), knobs])
    return table


def _cells(metrics: dict[str, float], found: SearchResult) -> list[str]:
    return [
        f"{100 * metrics[name]:.1f} %" if name == ACCURACY else f"{metrics[name]:.3g}"
        for name in found.plan.objectives
    ]


def markdown(bench: Bench, found: SearchResult, held_out: HeldOut | None, command: str) -> str:
    """The report as a page."""
    plan, settings = found.plan, bench.settings
    given_up = len(found.points) - len(found.complete)
    lines = [
        f"# {settings.method.decoder_name} tuned on {settings.task}",
        "",
        f"`{command}`",
        "",
        f"Model {settings.model}, cache {settings.method.cache_name}, batch {settings.batch_size}, seed "
        f"{plan.seed}. "
        f"{len(found.points)} points, {given_up} of them given up before their {plan.num_prompts} "
        f"prompts were all answered. Asked: {', '.join(map(str, plan.constraints)) or 'nothing'}.",
        "",
        "| | " + " | ".join(plan.objectives) + " | knobs |",
        "|---" * (len(plan.objectives) + 2) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(found)),
        "",
    ]
    if found.best is None:
        lines.append("No point keeps to what is asked.")
    if held_out is not None:
        lines.append(f"On held-out prompts the best against the defaults: {sentence(held_out)}.")
    return "\n".join(lines) + "\n"
