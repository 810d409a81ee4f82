"""`unmask tune`: a search for better knobs, watched and resumable."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unmask.cli.eval_options import KEY_WORDS, KeyOptions, SourceOptions, tell
from unmask.cli.options import MODEL, PRINT_JSON, SEARCH, ModelOptions, flat
from unmask.cli.tune_decisions import DecisionFitOptions
from unmask.errors import ConfigError
from unmask.options import option

if TYPE_CHECKING:
    from unmask.config import Sources
    from unmask.evals.settings import EvalSettings
    from unmask.tune.measure import Bench
    from unmask.tune.outcome import HeldOut
    from unmask.tune.reference import PromptFile
    from unmask.tune.study import SearchResult, StudyPlan, TrialPoint

TASK = "word_problem"
RUNS = "runs/tune"
PICTURE = "front.png"
WIDE = 10_000


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of a search."""

    objective: Annotated[tuple[str, ...], option(metavar="METRIC")] = ("tokens_per_forward",)
    """Objective besides accuracy: tokens_per_forward (independent of the machine), tokens_per_second,
    forwards_per_answer, latency_mean_s, ...; may be repeated. Default: tokens_per_forward."""

    constraint: Annotated[tuple[str, ...], option(metavar="TEXT")] = ("accuracy>=0.99*baseline",)
    """METRIC>=NUMBER or METRIC<=NUMBER, where NUMBER may end in *baseline; 'none': no constraint. Default:
    'accuracy>=0.99*baseline'."""

    space: Annotated[tuple[str, ...], option(metavar="KNOB=RANGE")] = ()
    """Range of a searched knob: LOW:HIGH, A,B,C, or off to keep its default; may be repeated."""

    trials: Annotated[int, option(least=1)] = 40
    """Total number of points; a larger number continues the study."""

    prompts: Annotated[str | None, option(metavar="N|FILE")] = None
    """Number of prompts of the search, or a file of rows with prompts alone, as in `bench decode`: accuracy
    is then the share of answers that are those of the decoder's defaults. Default: 100, or two thirds of
    fewer than 150 rows."""

    num_prompts: Annotated[int | None, option(least=2, metavar="N")] = None
    """Number of prompts of the search in --prompts FILE. Default: that of --prompts."""

    held_out: Annotated[int | None, option(least=0, metavar="N")] = None
    """Number of further prompts for the final comparison; 0 skips it. Default: 200, or the rows that are
    left."""

    plot: Annotated[Path | None, option(metavar="FILE")] = None
    """Plot of the Pareto front (.png, .svg or .pdf). Default: front.png in the output folder, if matplotlib
    is installed."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print all numbers as JSON instead of the table."""


tune = App(name="tune", help="Search a decoder's knobs for speed without loss of quality.")


@tune.default
def knobs(
    *words: Annotated[str, KEY_WORDS],
    options: Annotated[TuneOptions, flat(SEARCH)] = TuneOptions(),
    keys: Annotated[KeyOptions, flat()] = KeyOptions(),
    files: Annotated[SourceOptions, flat()] = SourceOptions(),
) -> None:
    """Search a decoder's knobs for speed without loss of quality.

    The decoder's published defaults are measured in the same run; the best point is compared with them on
    prompts that are not part of the search. preset.yaml in the output folder is a preset for generation=.
    Repeating the command continues an interrupted study.
    """
    run(keys.words(words), files.sources(), options)


@tune.command
def decisions(
    rows: Annotated[Path, Parameter(name="ROWS")],
    /,
    *,
    options: Annotated[DecisionFitOptions, flat()] = DecisionFitOptions(),
    model: Annotated[ModelOptions, flat(MODEL)] = ModelOptions(),
) -> None:
    """Fit the calibration of a model's decisions to labelled questions.

    A row has input, questions as in the body of POST /v1/decisions, and answers: the right values.

    Args:
        rows: Data file (.jsonl, .json, .parquet).
    """
    from unmask.cli import tune_decisions as command

    command.run(rows, options, model)


def run(words: Sequence[str], sources: Sources, options: TuneOptions) -> None:
    """Run the search, compare on held-out prompts, write the files and print the result."""
    settings, plan, file, held_out_count = planned(words, sources, options)
    from unmask.bench.plot import check_plot_file
    from unmask.tune import outcome, plot

    if options.plot is not None:
        check_plot_file(options.plot)
    bench = _bench(settings)
    from unmask.tune.reference import with_reference
    from unmask.tune.study import run as search

    with _progress(plan) as (watch, done):
        if file is not None:
            count = plan.num_prompts + held_out_count
            settings = with_reference(
                bench.llm, settings, file, count, lambda n, total: watch("reference", n, total)
            )
            bench = dataclasses.replace(bench, settings=settings)
        result = search(bench, plan, watch, done)
        held_out = outcome.check(bench, result, held_out_count, watch)
    command = _command(words, options)
    files = outcome.write(bench, result, held_out, command, bench.folder)
    picture = bench.folder / PICTURE if options.plot is None and _can_draw() else options.plot
    if picture is not None:
        plot.draw(result, picture)
        files.append(picture)
    _show(bench, result, held_out, files, options.as_json)


def planned(
    words: Sequence[str], sources: Sources, options: TuneOptions
) -> tuple[EvalSettings, StudyPlan, PromptFile | None, int]:
    """Return the settings that every point shares, the search, the file of prompts or None, and the
    number of prompts held out.

    Raises ConfigError before loading.
    """
    from unmask.config import compose, method_of
    from unmask.config.settings import settings_of
    from unmask.tune.goal import parse_constraint, parse_objectives
    from unmask.tune.reference import parse_prompts, shared_prompts
    from unmask.tune.space import parse_changes, space_of
    from unmask.tune.study import StudyPlan

    prompts = parse_prompts(options.prompts)
    words = _with_file(words, sources, prompts) if isinstance(prompts, Path) else words
    composed = compose(_with_task(words, sources), sources)
    for key in ("limit", "offset"):
        if composed.values[key].is_set:
            raise ConfigError(f"{key} has no effect here; use --prompts and --held-out")
    method = method_of(composed)
    tell(method.notes)
    settings = settings_of(composed, method)
    if not settings.judges:
        from unmask.evals.settings import LEAVE

        raise ConfigError(
            f"task={settings.task} is tuned by running code that the model wrote; {LEAVE}"
        )
    if options.num_prompts is not None and not isinstance(prompts, Path):
        raise ConfigError(
            f"--num-prompts {options.num_prompts} is for --prompts FILE; write --prompts "
            f"{options.num_prompts}"
        )
    file, shares = shared_prompts(settings, prompts, options.num_prompts, options.held_out)
    constraints = () if options.constraint == ("none",) else options.constraint
    plan = StudyPlan(
        space=space_of(method.decoder_name, parse_changes(options.space), tuple(method.given)),
        objectives=parse_objectives(options.objective),
        constraints=tuple(parse_constraint(text) for text in constraints),
        num_prompts=shares.searched,
        num_trials=options.trials,
        seed=settings.seed,
    )
    if composed["output"] is None:
        name = re.sub(r"[^A-Za-z0-9_.]+", "_", f"{composed['model.name']}")
        output = f"{RUNS}/{settings.task_name}-{name}-{settings.method.decoder_name}"
        settings = dataclasses.replace(settings, output=output)
    return settings, plan, file, shares.held_out


def _with_file(words: Sequence[str], sources: Sources, path: Path) -> list[str]:
    """Return the words with a file of prompts as the task. Raises ConfigError beside another task."""
    from unmask.cli.eval_options import word
    from unmask.config import compose
    from unmask.tune.reference import METRIC, check_alone

    composed = compose(words, sources)
    keys = {"task": "name", "target": "target", "metric": "metric", "shots": "shots"}
    check_alone(path, {flag: composed[f"dataset.{key}"] for flag, key in keys.items()})
    return [*words, word("task", str(path)), word("metric", METRIC)]


def _with_task(words: Sequence[str], sources: Sources) -> list[str]:
    """Return the words; without a task, the bundled word problems are added."""
    from unmask.config import compose

    named = compose(words, sources)["dataset.name"] is not None
    return list(words) if named else [*words, f"dataset.name={TASK}"]


def _bench(settings: EvalSettings) -> Bench:
    from unmask.tune.measure import Bench
    from unmask.view.progress import LoadingView

    with LoadingView(settings.model) as progress:
        from unmask.engine.llm import LLM

        llm = LLM(settings.model, dtype=settings.dtype, device=settings.device, progress=progress)
    return Bench(llm, settings, Path(settings.output))


def _can_draw() -> bool:
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def _progress(
    plan: StudyPlan,
) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[TrialPoint], None]]]:
    """Show progress and results of points: a bar on a terminal, else a line per point."""
    console = Console(stderr=True, highlight=False)
    total = plan.num_trials
    names = plan.objectives

    def line(point: TrialPoint) -> str:
        numbers = "  ".join(f"{name} {point.metrics[name]:.4g}" for name in names)
        state = point.given_up or ("" if point.is_feasible else "violates a constraint")
        return f"point {point.number} of {total}: {numbers}" + (f"  ({state})" if state else "")

    if not console.is_terminal:
        printed: set[str] = set()

        def note(label: str, done: int, count: int) -> None:
            if not label.startswith("point") and label not in printed:
                printed.add(label)
                print(label, file=sys.stderr, flush=True)

        yield note, lambda point: print(line(point), file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)

        def show(label: str, done: int, count: int) -> None:
            bar.update(task, description=label, completed=done, total=count)

        yield show, lambda point: bar.console.print(line(point), markup=False, soft_wrap=True)


def _command(words: Sequence[str], options: TuneOptions) -> str:
    """Return the command that repeats this run."""
    typed = ["unmask", "tune", *words]
    for flag, values in (
        ("--objective", options.objective),
        ("--constraint", options.constraint),
        ("--space", options.space),
    ):
        for value in values:
            typed += [flag, value]
    typed += ["--trials", str(options.trials)]
    for flag, number in (
        ("--prompts", options.prompts),
        ("--num-prompts", options.num_prompts),
        ("--held-out", options.held_out),
    ):
        if number is not None:
            typed += [flag, str(number)]
    return shlex.join(typed)


def _show(
    bench: Bench,
    result: SearchResult,
    held_out: HeldOut | None,
    files: Sequence[Path],
    as_json: bool,
) -> None:
    from unmask.tune import outcome

    if as_json:
        print((bench.folder / outcome.NUMBERS).read_text(encoding="utf-8"), end="")
        return
    console = Console(highlight=False)
    live = console.is_terminal
    if not live:
        console = Console(file=console.file, highlight=False, width=WIDE)
    table = Table(box=box.SIMPLE_HEAD if live else box.MARKDOWN, pad_edge=not live)
    for title in ("", *result.plan.objectives, "knobs"):
        table.add_column(title, overflow="fold")
    for row in outcome.rows(result):
        table.add_row(*map(Text, row))
    console.print(table)
    if note := outcome.too_long(result):
        console.print(Text(note))
    if result.best is None:
        console.print(
            Text("no point satisfies the constraints; increase --trials or relax --constraint")
        )
    if held_out is not None:
        console.print(
            Text(f"held out, best against defaults: {outcome.sentence(held_out)}"), soft_wrap=True
        )
    for path in files:
        console.print(Text(f"wrote {path}", "dim" if live else ""), soft_wrap=True)
    if result.best is not None:
        console.print(
            Text(f"use it: unmask eval generation={bench.folder / outcome.PRESET} ..."),
            soft_wrap=True,
        )
