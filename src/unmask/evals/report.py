"""Runs side by side: their table, and the pictures that their folders allow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.canvas import Floats
from unmask.errors import ConfigError
from unmask.evals.convergence import CONFIDENCE
from unmask.evals.metrics import aup
from unmask.evals.results import Results
from unmask.evals.table import side_by_side


@dataclass(frozen=True)
class EvalRun:
    """A run folder that was read; `name` tells it from the others."""

    name: str
    folder: Path
    results: Results


def read_runs(folders: Sequence[str | Path]) -> list[EvalRun]:
    """The runs of folders, named by as much of the path as tells them apart. Raises ConfigError."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ConfigError("no runs; give the folders that unmask eval wrote")
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        raise ConfigError(f"one run is given twice among {', '.join(map(str, folders))}")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return [
        EvalRun("/".join(end.parts[-depth:]), path, Results.read(path))
        for end, path in zip(whole, paths, strict=True)
    ]


def report(runs: Sequence[EvalRun]) -> str:
    """The table of the runs, and AUP over those of one task and model, as Markdown."""
    lines = [side_by_side([run.name for run in runs], [run.results for run in runs])]
    kinds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        metrics = run.results.metrics
        if "tokens_per_forward" in metrics:
            point = metrics["tokens_per_forward"], 100 * metrics["accuracy"]
            kinds.setdefault((run.results.task, run.results.model), []).append(point)
    for (task, model), points in kinds.items():
        area = aup(points)
        if area is not None and len(points) > 1:
            lines.append(f"AUP of {task} with {model} over {len(points)} runs: {area:.1f}\n")
    return "\n".join(lines)


def confidence_map(run: EvalRun) -> Floats:
    """Mean confidence at forward `k` in the open place `p` of the answer, `(K, P)`; empty without traces.

    NaN where no document has an open position there then.
    """
    path = run.folder / CONFIDENCE
    if not path.exists():
        return np.zeros((0, 0))
    rows = json.loads(path.read_text(encoding="utf-8"))
    return np.array([[np.nan if cell is None else cell for cell in row] for row in rows])
