"""Plot of quality against speed with one labeled point per decoder.

Nothing depends on color: markers differ in shape, every point has a label, the baseline is a star on a
dashed line, and a hollow marker denotes an accuracy that differs from that of the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unmask.bench.report import Report, Result, compare
from unmask.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
AXES = {
    "tokens_per_s": "answer tokens per second",
    "tokens_per_forward": "answer tokens per forward",
}
MARKERS = "osD^vPX<>hpd8H"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Palette of Okabe and Ito for color-blind readers."""
INCHES, DPI = (9.0, 6.0), 150
DISTANCES = (14, 24, 40, 60, 85, 115, 150)
"""Candidate distances of a label from its point, in pixels."""
DIRECTIONS = 16
MARKER_PIXELS = 9
MIN_SPAN = 10.0
"""Minimum height of the plot, in percentage points."""


class Point(NamedTuple):
    """A point of the plot: accuracy `y` in percent with its error, and the distances to the ends of x."""

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
        """Return the area in common, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return (self.right - self.left) * (self.top - self.bottom)


def check_plot_file(path: Path) -> None:
    """Raise ConfigError for a file name of an unknown format, DependencyError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"plot file {str(path)!r} must end in {', '.join(FORMATS)}; give it such a name"
        )
    need_matplotlib()


def need_matplotlib(alternative: str = "do without the plot") -> None:
    """Raise DependencyError without matplotlib; `alternative` is part of its message."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise DependencyError(
            "plots need matplotlib, which is not installed; pip install 'unmask[plot]', or "
            f"{alternative}"
        ) from None


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of `width` x `height` inches and its only axes, to be saved without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Figure, path: Path, axes: Axes, labels: Sequence[Point]) -> None:
    """Label the points of a laid-out figure and write the file. Raises OSError."""
    figure.canvas.draw()
    label_points(axes, figure.canvas.get_renderer(), labels)  # type: ignore[attr-defined, unused-ignore]
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=DPI)


def points(report: Report, x: str) -> list[Point]:
    """Return a point per decoder with a result, the baseline first."""
    listed = []
    for number, row in enumerate(report.rows):
        if row.result is None:
            continue
        middle, ends = _speed(row.result, x)
        listed.append(
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
    return listed


def _speed(result: Result, x: str) -> tuple[float, tuple[float, float]]:
    if x == "tokens_per_forward":
        return result.tokens_per_forward, (0.0, 0.0)
    middle, low, high = result.tokens_per_s
    return middle, (middle - low, high - middle)


def draw(report: Report, path: Path, x: str = "tokens_per_s") -> None:
    """Write the plot of a report; `x` is a key of `AXES`. Raises like `check_plot_file`, and OSError."""
    check_plot_file(path)
    labels = points(report, x)
    figure, axes = new_figure(*INCHES)
    for number, point in enumerate(labels):
        _draw_point(axes, point, number)
    _set_axes(axes, labels, x)
    _write_legend(figure, axes, report)
    save(figure, path, axes, labels)


def _draw_point(axes: Axes, point: Point, number: int) -> None:
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


def set_limits(axes: Axes, shown: Sequence[Point]) -> None:
    """Set limits of the axes that include all points and leave room for the labels."""
    low = min(point.y - point.y_error for point in shown)
    high = max(point.y + point.y_error for point in shown)
    margin = max(0.12 * (high - low), (MIN_SPAN - (high - low)) / 2)
    axes.set_ylim(max(-4.0, low - margin), min(104.0, high + margin))
    right = max(point.x + point.x_ends[1] for point in shown)
    axes.set_xlim(0, 1.18 * right if right > 0 else 1)
    axes.set_ylabel("right answers in %, ± standard error")


def _set_axes(axes: Axes, shown: Sequence[Point], x: str) -> None:
    set_limits(axes, shown)
    axes.set_xlabel(AXES[x] + ("" if x == "tokens_per_forward" else ", on this machine"))
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _write_legend(figure: Figure, axes: Axes, report: Report) -> None:
    from matplotlib.lines import Line2D

    setting, facts = report.setting, report.machine
    axes.set_title(
        f"{setting.task_name}: {setting.limit} prompts, model {report.model}, cache {setting.cache}"
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


def label_points(axes: Axes, renderer: RendererBase, shown: Sequence[Point]) -> None:
    """Place each label where it covers least, with a line to its point."""
    centers = [tuple(axes.transData.transform((point.x, point.y))) for point in shown]
    inside = Box(*axes.get_window_extent(renderer).extents)
    taken = [
        (Box(*legend.get_window_extent(renderer).extents), 20.0)
        for legend in (axes.get_legend(),)
        if legend is not None
    ]
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
            textcoords="offset points",  # an SVG or PDF has other pixels
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
        right = (place.left + place.right) / 2 - center[0]
        up = (place.bottom + place.top) / 2 - center[1]
        text.set_position((72 / DPI * right, 72 / DPI * up))


def _place(
    center: tuple[float, ...],
    size: tuple[float, float],
    inside: Box,
    taken: list[tuple[Box, float]],
) -> Box:
    """Return the cheapest place for a label: weighted area covered, then distance."""

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
