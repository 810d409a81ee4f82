"""`unmask compare`: decoders and caches on one task, as a table, plots and a page of all answers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from unmask.cli.eval_options import KEY_WORDS, KeyOptions, SourceOptions, tell, word
from unmask.cli.evaluate import progress
from unmask.cli.options import OUTPUT, PRINT_JSON, flat
from unmask.errors import ConfigError
from unmask.knobs import split_commas
from unmask.options import option

if TYPE_CHECKING:
    from unmask.config import Sources
    from unmask.engine.llm import LLM
    from unmask.evals.results import EvalRun
    from unmask.evals.settings import EvalSettings

RUNS = "runs/compare"
AXES = ("tokens_per_forward", "tokens_per_second")
FORMATS = ("svg", "pdf", "png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The methods of a comparison, and what is written."""

    decoders: Annotated[str, option(metavar="LIST")] = "vanilla,threshold"
    """Comma-separated decoders with optional knobs: 'vanilla,threshold(threshold=0.8),./mine.py'; the first
    is the reference."""

    caches: Annotated[str, option(metavar="LIST")] = "none"
    """Comma-separated caches with optional knobs; every decoder runs with each."""

    max_docs: Annotated[int, option(metavar="N", least=1)] = 200
    """Maximum number of documents in report.html; wrong ones come first."""

    no_pictures: bool = False
    """Draw no plots."""

    as_json: Annotated[bool, PRINT_JSON] = False
    """Print the numbers as JSON instead of the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareKeys(KeyOptions):
    """Flags of configuration keys, with the number of examples."""

    limit: Annotated[int | None, option(metavar="N")] = None
    """Number of examples to answer: limit=N. Default: all."""


def compare(
    *words: Annotated[str, KEY_WORDS],
    options: Annotated[CompareOptions, flat(OUTPUT)] = CompareOptions(),
    keys: Annotated[CompareKeys, flat()] = CompareKeys(),
    files: Annotated[SourceOptions, flat()] = SourceOptions(),
) -> None:
    """Compare decoders and caches on a task: table, plots, and a page of all answers.

    Writes table.csv, table.tex, table.json, the fronts of accuracy against speed (.svg, .pdf, .png) and
    report.html, one file with a browser of all answers and their traces. Every combination has a run
    folder; the same command resumes an interrupted comparison.
    """
    if not options.no_pictures:
        from unmask.bench.plot import need_matplotlib

        need_matplotlib("use --no-pictures")
    plans, folder = planned(keys, words, files.sources(), options)
    runs, llm = run(plans)
    from unmask.evals.comparison import as_csv, as_latex, records
    from unmask.evals.run_folder import writing
    from unmask.view.comparison import page, show

    rows = records(runs)
    table = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    with writing(folder):
        pictures = [] if options.no_pictures else _draw(runs, folder)
        texts = {"table.csv": as_csv(rows), "table.tex": as_latex(rows), "table.json": table}
        drawn = [path for path in pictures if path.suffix == ".svg"]
        texts["report.html"] = page(runs, rows, drawn, llm, options.max_docs)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    if options.as_json:
        print(table, end="")
    else:
        show(rows, Console(highlight=False))
    for path in (*pictures, *(folder / name for name in texts)):
        print(path, file=sys.stderr)


def planned(
    keys: KeyOptions, words: Sequence[str], sources: Sources, options: CompareOptions
) -> tuple[dict[str, EvalSettings], Path]:
    """Return the settings of each run by its label, and the folder. Raises ConfigError before loading."""
    from unmask.config import compose
    from unmask.config.settings import settings_of

    for name, flag in (("decoder", "--decoders"), ("cache", "--caches")):
        if getattr(keys, name) is not None:
            raise ConfigError(f"--{name} {getattr(keys, name)}: give all of them in {flag}")
    plans: dict[str, EvalSettings] = {}
    output = ""
    for decoder in _split(options.decoders, "--decoders"):
        for cache in _split(options.caches, "--caches"):
            both = [word("decoder", decoder), word("cache", cache)]
            composed = compose([*keys.words(words), *both], sources)
            settings = settings_of(composed)
            _check(settings)
            tell(settings.method.notes)
            if not composed.values["trace"].is_set:
                settings = dataclasses.replace(settings, trace=True)
            if not output:
                model = re.sub(r"[^A-Za-z0-9_.]+", "_", str(composed["model.name"]))
                output = composed["output"] or f"{RUNS}/{settings.task_name}-{model}"
            label = decoder if cache == "none" else f"{decoder}, {cache}"
            if label in plans:
                raise ConfigError(f"{label} is listed twice; leave one out")
            name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{decoder}-{cache}").strip("-.")
            place = Path(output) / f"{name}-{settings.fingerprint()}"
            plans[label] = dataclasses.replace(settings, output=str(place))
    return plans, Path(output)


def _split(text: str, flag: str) -> list[str]:
    parts = split_commas(text)
    found = [part.strip() for part in parts or () if part.strip()]
    if parts is None or len(found) != len(parts):
        raise ConfigError(f"{flag} {text!r} must be names with commas between them")
    return found


def _check(settings: EvalSettings) -> None:
    from unmask.evals.settings import LEAVE

    if settings.entry.choices:
        raise ConfigError(
            f"task={settings.task} is answered by likelihood, which no decoder changes; compare on a task "
            f"with generated answers"
        )
    if not settings.judges:
        raise ConfigError(f"task={settings.task} runs code that the model wrote; {LEAVE}")


def run(plans: dict[str, EvalSettings]) -> tuple[list[EvalRun], LLM]:
    """Evaluate each of the settings with one model; return the runs by label, and the model."""
    from unmask.evals.results import EvalRun
    from unmask.evals.run import evaluate
    from unmask.view.progress import LoadingView

    first = next(iter(plans.values()))
    with LoadingView(first.model) as loading:
        from unmask.engine.llm import LLM

        llm = LLM(first.model, dtype=first.dtype, device=first.device, progress=loading)
    runs = []
    for number, (label, settings) in enumerate(plans.items(), start=1):
        with progress(f"{number}/{len(plans)} {settings.task_name} {label}") as report:
            results = evaluate(settings, report, llm, has_curves=False)
        runs.append(EvalRun(label, settings.folder, results))
    return runs, llm


def _draw(runs: Sequence[EvalRun], folder: Path) -> list[Path]:
    """Draw the fronts in all formats; return their paths."""
    from unmask.evals.plots import draw_front

    drawn = []
    for axis in AXES:
        for ending in FORMATS:
            drawn.append(folder / f"front_{axis}.{ending}")
            draw_front(runs, drawn[-1], axis)
    return drawn
