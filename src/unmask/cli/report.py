"""`unmask report`: comparison of runs of `unmask eval`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unmask.errors import ConfigError
from unmask.options import option


def report(
    *runs: Annotated[
        str,
        Parameter(name="RUN...", help="Run folders of `unmask eval`; the first is the reference."),
    ],
    out: Annotated[Path | None, option(metavar="FOLDER")] = None,
    no_pictures: bool = False,
) -> None:
    """Compare runs of `eval`: a table, and plots of quality against speed.

    Plots of confidence and of early answers need runs with trace=true.

    Args:
        out: Folder of report.md and the plots. Default: the parent of the first RUN.
        no_pictures: Only print the table; write no files.
    """
    if not runs:
        raise ConfigError("no runs; give at least one run folder of `unmask eval`")
    from unmask.evals.results import read_runs
    from unmask.evals.results import report as text_of

    loaded = read_runs(runs)
    text = text_of(loaded)
    print(text, end="", flush=True)
    if no_pictures:
        return
    folder = loaded[0].folder.absolute().parent if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw(runs, folder)
        links = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
        (folder / "report.md").write_text(text + links, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} cannot be written: {error.strerror}; use --out FOLDER"
        ) from None
    for path in (folder / "report.md", *drawn):
        print(path, file=sys.stderr)


def draw(folders: Sequence[str], folder: Path) -> list[Path]:
    """Draw the plots for which the runs have data; return their paths. Raises DependencyError."""
    from unmask.bench.plot import need_matplotlib
    from unmask.evals import plots
    from unmask.evals.results import read_runs

    need_matplotlib("use --no-pictures")
    runs = read_runs(folders)
    drawn = []
    fast = [
        run for run in runs if "tokens_per_second" in run.results.metrics and run.results.is_judged
    ]
    for x in ("tokens_per_second", "tokens_per_forward"):
        if fast:
            drawn.append(folder / f"front_{x}.png")
            plots.draw_front(fast, drawn[-1], x)
    traced = [run for run in runs if run.results.early]
    if traced:
        drawn.append(folder / "early.png")
        plots.draw_early(traced, drawn[-1])
    for run in runs:
        values = run.confidence_map()
        if values.size:
            drawn.append(folder / f"confidence_{run.name.replace('/', '_')}.png")
            plots.draw_confidence(run, values, drawn[-1])
    return drawn
