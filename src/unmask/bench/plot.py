"""Quality against speed as a picture: one labeled point a decoder.

Nothing depends on color: markers differ in shape, every point has its name beside it, the baseline is a
star on a dashed line, and a hollow marker says that the accuracy differs from the baseline's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unmask.bench.report import Report, Result, compare
from unmask.errors import ConfigError, DependencyError

FORMATS = (".png", ".svg", ".pdf")
AXES = {
    "tokens_per_s": "answer tokens per second",
    "tokens_per_forward": "answer tokens per forward",
}
MARKERS = "osD^vPX<>hpd8H"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by the color-blind too; the first color has the first shape."""
INCHES, DPI = (9.0, 6.0), 150
DISTANCES = (14, 24, 40, 60, 85, 115, 150)
"""Pixels from a point to its label, nearest first."""
DIRECTIONS = 16
MARKER_PIXELS = 9
LEAST_SPAN = 10.0
"""Percentage points that the picture is high, at least."""


class Point(NamedTuple):
    """A decoder in the picture: percent with its error, and the distances to the x range's ends."""

    label: str
    x: float
    x_ends: tuple[float, float]
    y: float
    y_error: float
    is_baseline: bool
    is_different: bool


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Pixels in common."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)

    @property
    def area(self) -> float:
        """Pixels inside."""
        return (self.right - self.left) * (self.top - self.bottom)


def check_possible(path: Path) -> None:
    """Raises DependencyError without matplotlib, ConfigError for a file name of another format."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"plot file {str(path)!r} must end in {', '.join(FORMATS)}; give it such a name"
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise DependencyError(
            "a plot needs matplotlib, which is not installed; pip install 'unmask[plot]'"
        ) from None


def points(report: Report, x: str) -> list[Point]:
    """Every decoder with a result, the baseline first."""
    found = []
    for number, row in enumerate(report.rows):
        if row.result is None:
            continue
        middle, ends = _speed(row.result, x)
        found.append(
            Point(
                label=row.label + (" (baseline)" if number == 0 else ""),
                x=middle,
                x_ends=ends,
                y=100 * row.result.accuracy,
                y_error=100 * row.result.accuracy_error,
                is_baseline=number == 0,
                is_different=bool(compare(row.result, report.baseline).is_different),
            )
        )
    return found


def _speed(result: Result, x: str) -> tuple[float, tuple[float, float]]:
    if x == "tokens_per_forward":
        return result.tokens_per_forward, (0.0, 0.0)
    middle, low, high = result.tokens_per_s
    return middle, (middle - low, high - middle)


def draw(report: Report, path: Path, x: str = "tokens_per_s") -> None:
    """Draw a report into a file; `x` is one of AXES. Raises like `check_possible`, and OSError."""
    check_possible(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = points(report, x)
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, point in enumerate(shown):
        _draw_point(axes, point, number)
    _frame(axes, shown, x)
    _words(figure, axes, report)
    canvas.draw()  # type: ignore[no-untyped-call, unused-ignore]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call, unused-ignore]
    label_points(axes, renderer, shown)
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=DPI)


def _draw_point(axes: Any, point: Point, number: int) -> None:
    color = "black" if point.is_baseline else COLORS[(number - 1) % len(COLORS)]
    axes.errorbar(
        [point.x],
        [point.y],
        xerr=[[point.x_ends[0]], [point.x_ends[1]]] if any(point.x_ends) else None,
        yerr=[[min(point.y_error, point.y)], [min(point.y_error, 100 - point.y)]],
        marker="*" if point.is_baseline else MARKERS[(number - 1) % len(MARKERS)],
        markersize=15 if point.is_baseline else 8,
        color=color,
        markerfacecolor="white" if point.is_different else color,
        markeredgewidth=1.5,
        elinewidth=0.9,
        capsize=3,
        zorder=3,
    )
    if point.is_baseline:
        axes.axhline(point.y, color="black", linestyle="--", linewidth=0.8, zorder=1)


def _frame(axes: Any, shown: Sequence[Point], x: str) -> None:
    """Axes that hold all points and leave room for the labels."""
    low = min(point.y - point.y_error for point in shown)
    high = max(point.y + point.y_error for point in shown)
    margin = max(0.12 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    axes.set_ylim(max(-4.0, low - margin), min(104.0, high + margin))
    right = max(point.x + point.x_ends[1] for point in shown)
    axes.set_xlim(0, 1.18 * right if right > 0 else 1)
    axes.set_xlabel(AXES[x] + ("" if x == "tokens_per_forward" else ", on this machine"))
    axes.set_ylabel("right answers in %, ± standard error")
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _words(figure: Any, axes: Any, report: Report) -> None:
    from matplotlib.lines import Line2D

    setting, facts = report.setting, report.machine
    axes.set_title(
        f"{setting.task}: {setting.limit} held-out prompts, model {report.model}, cache {setting.cache}"
    )
    hollow = Line2D(
        [], [], color="black", marker="o", linestyle="", markersize=8, markerfacecolor="white"
    )
    full = Line2D([], [], color="black", marker="o", linestyle="", markersize=8)
    axes.legend(
        [full, hollow],
        ["no difference from the baseline shown", "differs by more than 2 standard errors"],
        title="Accuracy (paired)",
        loc="lower right",
        fontsize="small",
        title_fontsize="small",
    )
    figure.supxlabel(
        f"gen_length {setting.gen_length}, block_length {setting.block_length}, batch "
        f"{setting.max_batch_size}, seed {setting.seed}, {setting.repeat} timed repeat(s), "
        f"{report.dtype} on {facts['accelerator'] or facts['processor']}, {facts['num_threads']} "
        f"thread(s)\nunmask {report.version}, torch {facts['torch']}, Python {facts['python']}, "
        f"{report.date}",
        fontsize="x-small",
        color="#444444",
    )


def label_points(axes: Any, renderer: Any, shown: Sequence[Point]) -> None:
    """Write every name where it hides least, with a line to its point."""
    centers = [tuple(axes.transData.transform((point.x, point.y))) for point in shown]
    inside = Box(*axes.get_window_extent(renderer).extents)
    taken = [(Box(*axes.get_legend().get_window_extent(renderer).extents), 20.0)]
    for point, (x, y) in zip(shown, centers, strict=True):
        half = MARKER_PIXELS
        taken.append((Box(x - half, y - half, x + half, y + half), 10.0))
        low = axes.transData.transform((point.x - point.x_ends[0], point.y - point.y_error))
        high = axes.transData.transform((point.x + point.x_ends[1], point.y + point.y_error))
        taken.append((Box(x - 3, low[1], x + 3, high[1]), 2.0))
        taken.append((Box(low[0] - 3, y - 3, high[0] + 3, y + 3), 2.0))
    for point, center in zip(shown, centers, strict=True):
        text = axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset pixels",
            ha="center",
            va="center",
            fontsize="small",
            fontweight="bold" if point.is_baseline else "normal",
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.7, "shrinkB": 6},
            zorder=4,
        )
        size = text.get_window_extent(renderer)
        place = _place(center, (size.width, size.height), inside, taken)
        taken.append((place, 20.0))
        text.set_position(
            ((place.left + place.right) / 2 - center[0], (place.bottom + place.top) / 2 - center[1])
        )


def _place(
    center: tuple[float, ...],
    size: tuple[float, float],
    inside: Box,
    taken: list[tuple[Box, float]],
) -> Box:
    """The cheapest place for a label: pixels hidden, by weight, then nearness."""

    def cost(distance: float, box: Box) -> float:
        outside = 50.0 * (box.area - box.overlap(inside))
        return distance + outside + sum(weight * box.overlap(other) for other, weight in taken)

    places = []
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            x = center[0] + (distance + size[0] / 2) * math.cos(angle)
            y = center[1] + (distance + size[1] / 2) * math.sin(angle)
            box = Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
            places.append((cost(distance, box), box))
    return min(places)[1]
