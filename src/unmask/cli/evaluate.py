"""`unmask eval`: one evaluation, or one for every combination of a sweep."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli import launcher
from unmask.cli.eval_options import KEY_WORDS, KeyOptions, SourceOptions, is_first, note, tell
from unmask.cli.options import PRINT_JSON, flat
from unmask.errors import ConfigError
from unmask.options import option
from unmask.plain_text import one_line
from unmask.view.progress import EvaluationView

if TYPE_CHECKING:
    from unmask.config import Sources
    from unmask.evals.results import Results
    from unmask.evals.settings import EvalSettings

COLUMNS = (
    ("accuracy", "accuracy"),
    ("tokens/s", "tokens_per_second"),
    ("tokens/forward", "tokens_per_forward"),
    ("forwards", "num_forwards"),
    ("waste", "waste"),
    ("latency s", "latency_mean_s"),
)
NONE = "-"
WIDE = 10_000
MAX_PROCESSES = 256
OF_JUDGING = ("confirm_run_unsafe_code", "dataset.path")
"""Keys that may stand beside --judge."""
COMMAND_LINE = "command line"
ALONE = (
    "accelerate launch started one process, although it was asked for several: on a CPU it starts no more; "
    "to share the examples, leave it out and run: unmask eval --num-processes N"
)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(KeyOptions):
    """Options of `unmask eval`."""

    limit: Annotated[int | None, option(metavar="N")] = None
    """Number of examples to answer: limit=N. Default: all."""

    num_processes: Annotated[int | None, option(metavar="N", least=1, most=MAX_PROCESSES)] = None
    """Number of processes that share the examples, on a GPU each or on the CPU. Default: 1."""

    reproduce: Annotated[Path | None, option(metavar="FILE")] = None
    """Repeat the run of this results.json and say what came out the same; exit status 1 if not all did."""

    judge: Annotated[Path | None, option(metavar="RUN")] = None
    """Judge the stored programs of this run folder; needs confirm_run_unsafe_code=true."""


def evaluate(
    *words: Annotated[str, KEY_WORDS],
    options: Annotated[EvalOptions, flat()] = EvalOptions(),
    files: Annotated[SourceOptions, flat()] = SourceOptions(),
    multirun: Annotated[bool, Parameter(alias="-m")] = False,
    cfg: Annotated[str | None, option(metavar="job")] = None,
    as_json: Annotated[bool, PRINT_JSON] = False,
) -> int:
    """Evaluate a task: accuracy and speed.

    The keys are Hydra's: `dataset.name=gsm8k generation=klass model=llada-inst`. The same command
    resumes an interrupted run. Programs that a model writes run only with confirm_run_unsafe_code=true (or
    $HF_ALLOW_CODE_EVAL=1); without it they are stored, and --judge RUN judges them later.

    Args:
        multirun: Run every combination of words that list values (a=1,2).
        cfg: Print the configuration and stop.
        as_json: Print one JSON object per run instead of a table.
    """
    keys, sources = options.words(words), files.sources()
    if options.judge is not None:
        if multirun or cfg is not None or options.num_processes is not None:
            raise ConfigError("--judge takes no -m, --cfg or --num-processes; leave them out")
        present([_judge(options.judge, keys, sources)], [str(options.judge)], as_json)
        return 0
    if options.reproduce is not None:
        if multirun or cfg is not None or options.num_processes is not None:
            raise ConfigError("--reproduce takes no -m, --cfg or --num-processes; leave them out")
        return _reproduce(options.reproduce, keys, sources, as_json)
    if cfg is None:
        runs = planned(keys, sources, multirun)
        if _shares(runs, options.num_processes):
            again = [*keys, *files.words(), *(["--multirun"] if multirun else [])]
            again += ["--json"] if as_json else []
            raise SystemExit(launcher.start(options.num_processes or 1, ["eval", *again]))
        run(runs, as_json)
        return 0
    if cfg != "job":
        raise ConfigError(f"--cfg {cfg}: only job is there, the configuration of the run")
    if multirun:
        raise ConfigError("--cfg job prints one configuration; leave -m out")
    from unmask.cli.config import print_job

    print_job(keys, sources)
    return 0


def _reproduce(path: Path, words: Sequence[str], sources: Sources, as_json: bool) -> int:
    """Repeat a run, print what is the same, and return the exit status."""
    from unmask.config import compose
    from unmask.config.overrides import parse
    from unmask.evals.reproduce import check_model, compare, reproduction_of
    from unmask.evals.run import evaluate
    from unmask.models import with_revision

    composed = compose(words, sources)
    changes: dict[str, object] = {}
    for each in parse(words):
        if each.key == "model" or each.key.startswith("model."):
            name = composed["model.path"] or composed["model.name"]
            changes["model"] = with_revision(name, composed["model.revision"])
        elif each.key in composed.values:
            changes["data" if each.key == "dataset.path" else each.key] = composed[each.key]
        else:
            changes[each.key] = each.value
    before, settings = reproduction_of(path, changes)
    from unmask.engine.llm import LLM

    llm = LLM(settings.model, dtype=settings.dtype, device=settings.device)
    check_model(path, before, llm)
    with progress(f"{settings.task_name} {settings.method.decoder_name}") as report:
        found = compare(path, before, evaluate(settings, report, llm))
    present([before, found.now], [str(path), settings.output], as_json)
    for name, (old, new) in found.environment.items():
        note(f"{name} was {old}, is {new}")
    for name, (old, new) in found.counts.items():
        print(f"differs: {name} was {old}, is {new}", file=sys.stderr)
    if found.docs:
        listed = ", ".join(map(str, found.docs[:8]))
        print(f"differs: {len(found.docs)} documents (the first: {listed})", file=sys.stderr)
    what = (
        "answers and scores" if found.has_texts else "scores (the answers are not beside the file)"
    )
    if found.is_same:
        print(f"reproduced: {len(before.docs)} documents, the same {what}", file=sys.stderr)
    return int(not found.is_same)


def _shares(runs: Sequence[EvalSettings], num_processes: int | None) -> bool:
    """Return True if processes must be started to share the examples. Raises ConfigError.

    Notes on standard error if `accelerate launch` did not start those that it was asked for.
    """
    if num_processes is None:
        if launcher.is_alone_under_accelerate():
            note(ALONE)
        return False
    launcher.check_size(num_processes, "--num-processes")
    if num_processes == 1 or launcher.is_started():
        return False
    import torch

    count = torch.cuda.device_count()
    if count and num_processes > count and not all(one.device == "cpu" for one in runs):
        raise ConfigError(
            f"--num-processes {num_processes}: each takes a GPU, and there are {count}; lower it, or add "
            f"device=cpu"
        )
    return True


def run(runs: Sequence[EvalSettings], as_json: bool) -> None:
    """Evaluate, and print a table (or the results as JSON lines)."""
    tell([each for settings in runs for each in settings.method.notes])
    from unmask.evals.results import documents
    from unmask.evals.run import evaluate

    results = []
    for number, settings in enumerate(runs, start=1):
        label = f"{settings.task_name} {settings.method.decoder_name}"
        if len(runs) > 1:
            label = f"{number}/{len(runs)} {label}"
        with progress(label) as report:
            results.append(evaluate(settings, report))
    if not is_first():
        return
    for result in results:
        if result.metrics["num_too_long"]:
            note(f"{result.task}: {documents(result)}")
    present(results, [settings.output for settings in runs], as_json)


def _judge(folder: Path, words: Sequence[str], sources: Sources) -> Results:
    """Judge the programs of a run. Raises ConfigError for any other word than leave and data folder."""
    from unmask.config import compose
    from unmask.config.overrides import parse

    others = [each.typed_key for each in parse(words) if each.key not in OF_JUDGING]
    if others or sources.config_file is not None:
        raise ConfigError(
            f"--judge {folder} with {others[0] if others else '--config'}: the answers are there already; "
            f"beside it only {' and '.join(OF_JUDGING)} are possible"
        )
    composed = compose(words, sources)
    data = composed.values["dataset.path"]
    from unmask.evals.judging import judge

    return judge(
        folder,
        may_run_code=composed["confirm_run_unsafe_code"],
        data=data.value if data.layer == COMMAND_LINE else None,
    )


def planned(words: Sequence[str], sources: Sources, is_sweep: bool) -> list[EvalSettings]:
    """Return the settings of all runs, checked before the first one starts."""
    from unmask.config import compose, sweep
    from unmask.config.settings import settings_of

    runs = []
    for combination in sweep(words) if is_sweep else [list(words)]:
        composed = compose(combination, sources)
        settings = settings_of(composed)
        if is_sweep and composed["output"] is not None:
            name = f"{settings.method.decoder_name}-{settings.fingerprint()}"
            settings = dataclasses.replace(settings, output=str(Path(composed["output"]) / name))
        runs.append(settings)
    return runs


@contextmanager
def progress(label: str) -> Iterator[Any]:
    """Show a bar on a terminal, else print a line at every tenth; both on standard error."""
    console = Console(stderr=True, highlight=False)
    if not is_first():
        yield lambda done, total: None
        return
    if not console.is_terminal:
        yield _lines(label)
        return
    with EvaluationView(label, console) as view:
        yield view


def _lines(label: str) -> Any:
    began, label = time.perf_counter(), one_line(label)
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // max(1, total)
        if tenth > last:
            last = tenth
            seconds = time.perf_counter() - began
            print(f"{label}: {done} of {total}, {seconds:.0f} s", file=sys.stderr, flush=True)

    return report


def present(results: Sequence[Results], folders: Sequence[str], as_json: bool) -> None:
    """Print a table or JSON lines, after notes on runs that are not judged."""
    for result, folder in zip(results, folders, strict=True):
        if not result.is_judged:
            again = shlex.join(["unmask", "eval", "--judge", folder])
            note(
                f"{result.task}: not judged, because judging runs code that the model wrote; the answers "
                f"are in {folder}; to judge them: {again} confirm_run_unsafe_code=true (or set "
                f"HF_ALLOW_CODE_EVAL=1)"
            )
    if as_json:
        for result in results:
            print(_json(result))
        return
    show(results, folders, Console(highlight=False))


def show(results: Sequence[Results], folders: Sequence[str], console: Console) -> None:
    """Print a line per run, and the folder of its results."""
    live = console.is_terminal
    if not live:
        console = Console(file=console.file, highlight=False, width=WIDE)
    table = Table(box=box.SIMPLE_HEAD if live else box.MARKDOWN, pad_edge=not live)
    table.add_column("run", overflow="fold")
    columns = list(COLUMNS)
    if any(result.metrics.get("num_too_long") for result in results):
        columns.append(("too long", "num_too_long"))
    for title, _ in columns:
        table.add_column(title, justify="right")
    for result in results:
        label = f"{result.task}: {result.method}"
        label += "" if result.cache == "none" else f", cache {result.cache}"
        cells = [_cell(result.metrics, name) for _, name in columns]
        table.add_row(*(Text(one_line(cell)) for cell in (label, *cells)))
    console.print(table)
    for folder in folders:
        console.print(Text(f"results: {folder}", "dim" if live else ""), soft_wrap=True)


def _cell(metrics: dict[str, float], name: str) -> str:
    if name == "accuracy":
        from unmask.evals.results import accuracy_cell

        return accuracy_cell(metrics)
    value = metrics.get(name)
    if value is None:
        return NONE
    if name == "waste":
        return f"{100 * value:.0f} %"
    return f"{value:.0f}" if name.startswith("num_") else f"{value:.2f}"


def _json(result: Results) -> str:
    import json

    return json.dumps(dataclasses.asdict(result), ensure_ascii=False)
