"""Plot of all points of a search: accuracy against the first objective.

Nothing depends on color: points of the front are filled and joined, stopped ones are crosses, the defaults
are a star.
"""

from __future__ import annotations

from pathlib import Path

from unmask.bench.plot import new_figure
from unmask.errors import ConfigError
from unmask.tune.goal import ACCURACY
from unmask.tune.study import SearchResult, TrialPoint


def draw(result: SearchResult, path: Path) -> None:
    """Write the plot. Raises ConfigError where the file cannot be written."""
    name = next((item for item in result.plan.objectives if item != ACCURACY), ACCURACY)
    figure, axes = new_figure(7.5, 5.0)
    on_front = {point.number for point in result.front}
    groups = (
        ("stopped early (so far)", [p for p in result.points if p.given_up], "x", "#888888"),
        ("measured", [p for p in result.complete if p.number not in on_front], "o", "none"),
    )
    for label, points, marker, face in groups:
        x, y = _coordinates(points, name)
        edge = "#333333" if face == "none" else None
        if points:
            axes.scatter(x, y, marker=marker, c=face, s=34, label=label, edgecolors=edge)
    ordered = sorted(result.front, key=lambda point: point.metrics[name])
    if ordered:
        x, y = _coordinates(ordered, name)
        axes.plot(x, y, "o-", color="#0072B2", label="front", markersize=7)
        for point, across, up in zip(ordered, x, y, strict=True):
            axes.annotate(
                str(point.number), (across, up), xytext=(5, 5), textcoords="offset points"
            )
    base = result.baseline.metrics
    axes.scatter(
        [base[name]], [100 * base[ACCURACY]], marker="*", s=200, c="#D55E00", label="defaults"
    )
    for item in result.plan.constraints:
        limit = item.limit(base)
        if item.metric == ACCURACY:
            axes.axhline(100 * limit, linestyle="--", color="#333333", label=str(item))
        elif item.metric == name:
            axes.axvline(limit, linestyle="--", color="#333333", label=str(item))
    axes.set_xlabel(name.replace("_", " "))
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def _coordinates(points: list[TrialPoint], name: str) -> tuple[list[float], list[float]]:
    x = [point.metrics[name] for point in points]
    return x, [100 * point.metrics[ACCURACY] for point in points]
