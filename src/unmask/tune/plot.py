"""The front as a picture: every point of a search, accuracy against the first objective.

Nothing depends on color: points of the front are filled and joined, given-up ones are crosses, the
defaults are a star.
"""

from __future__ import annotations

from pathlib import Path

from unmask.errors import ConfigError, DependencyError
from unmask.tune.goal import ACCURACY
from unmask.tune.study import SearchResult, TrialPoint

FORMATS = (".png", ".svg", ".pdf")


def check_plot_file(path: Path) -> None:
    """Raise ConfigError for a format that cannot be written, DependencyError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot {str(path)!r} must end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DependencyError(
            "pictures need matplotlib, which is not installed; pip install 'unmask[plot]'"
        ) from None


def draw(found: SearchResult, path: Path) -> None:
    """Write the picture. Raises ConfigError where the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = next((item for item in found.plan.objectives if item != ACCURACY), ACCURACY)
    figure = Figure(figsize=(7.5, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kept = {point.number for point in found.front}
    groups = (
        ("given up early (so far)", [p for p in found.points if p.given_up], "x", "#888888"),
        ("measured", [p for p in found.complete if p.number not in kept], "o", "none"),
    )
    for label, points, marker, face in groups:
        x, y = _places(points, name)
        edge = "#333333" if face == "none" else None
        if points:
            axes.scatter(x, y, marker=marker, c=face, s=34, label=label, edgecolors=edge)
    ordered = sorted(found.front, key=lambda point: point.metrics[name])
    if ordered:
        x, y = _places(ordered, name)
        axes.plot(x, y, "o-", color="#0072B2", label="front", markersize=7)
        for point, across, up in zip(ordered, x, y, strict=True):
            axes.annotate(
                str(point.number), (across, up), xytext=(5, 5), textcoords="offset points"
            )
    base = found.baseline.metrics
    axes.scatter(
        [base[name]], [100 * base[ACCURACY]], marker="*", s=200, c="#D55E00", label="defaults"
    )
    for item in found.plan.constraints:
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


def _places(points: list[TrialPoint], name: str) -> tuple[list[float], list[float]]:
    across = [point.metrics[name] for point in points]
    return across, [100 * point.metrics[ACCURACY] for point in points]
