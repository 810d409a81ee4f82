"""The report's pictures. Nothing depends on color alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.bench.plot import COLORS, DPI, MARKERS, Point, label_points
from unmask.canvas import Floats
from unmask.errors import DependencyError
from unmask.evals.report import EvalRun

LINES = ("-", "--", "-.", ":")


def draw_front(runs: Sequence[EvalRun], path: Path, x: str = "tokens_per_second") -> None:
    """Accuracy against speed, a labeled point a run; a dashed line joins those that none beats."""
    figure, axes = _figure(9, 6)
    shown = []
    for number, run in enumerate(runs):
        m = run.results.metrics
        y, error = 100 * m["accuracy"], 100 * m.get("accuracy_stderr", 0.0)
        shown.append(Point(run.name, m[x], (0.0, 0.0), y, error, number == 0, False))
        axes.errorbar(
            [m[x]],
            [y],
            yerr=[[min(error, y)], [min(error, 100 - y)]],
            marker=MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            markersize=8,
            capsize=3,
            zorder=3,
        )
    best = front([(point.x, point.y) for point in shown])
    axes.plot(*zip(*best, strict=True), "--", color="#888888", label="no run is better in both")
    low, high = min(p.y - p.y_error for p in shown), max(p.y + p.y_error for p in shown)
    margin = max(0.12 * (high - low), 5.0)
    axes.set_ylim(max(-4, low - margin), min(104, high + margin))
    axes.set_xlim(0, 1.18 * max(point.x for point in shown) or 1)
    axes.set_xlabel(x.replace("_", " ").replace("tokens", "response tokens", 1))
    axes.set_ylabel("right answers in %, ± standard error")
    axes.set_title(f"{_tasks(runs)}: quality and speed")
    axes.legend(loc="lower right", fontsize="small")
    canvas = figure.canvas
    canvas.draw()
    label_points(axes, canvas.get_renderer(), shown)
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=DPI)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in one coordinate without losing in the other, by growing x."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found[::-1]


def draw_confidence(run: EvalRun, values: Floats, path: Path) -> None:
    """Confidence in open positions by forward and place. Source: arXiv:2512.07173 (CadLLM), Fig. 1a."""
    figure, axes = _figure(9, 5)
    image = axes.imshow(
        values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="viridis",
        vmin=0,
        vmax=1,
    )
    axes.set_facecolor("#EEEEEE")
    axes.set_xlabel("place in the answer")
    axes.set_ylabel("forward")
    axes.set_title(
        f"{run.results.task}, {run.results.method}, cache {run.results.cache}: mean confidence in open "
        f"positions\n{len(run.results.docs)} documents; gray: all are decided there",
        fontsize="medium",
    )
    figure.colorbar(image, ax=axes, label="confidence")
    figure.savefig(path, dpi=DPI)


def draw_early(runs: Sequence[EvalRun], path: Path) -> None:
    """Share of answers already right on the way. Source: arXiv:2508.19982 (Prophet), Fig. 1."""
    figure, axes = _figure(8, 5)
    for number, run in enumerate(runs):
        early = run.results.early
        xs = [100 * i / (len(early) - 1) for i in range(len(early))]
        axes.plot(
            xs,
            [100 * value for value in early],
            LINES[number % len(LINES)],
            marker=MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            markersize=4,
            label=f"{run.name}: {run.results.metrics['forwards_per_answer']:.1f} forwards an answer",
        )
    axes.set_xlabel("% of the answer's forwards done")
    axes.set_ylabel("% right if the rest were filled in now")
    axes.set_ylim(-2, 102)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_title(f"{_tasks(runs)}: answers already right")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=DPI)


def draw_head(rows: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Milliseconds of LM head and softmax by vocabulary size. Source: arXiv:2512.07173, Fig. 1b."""
    figure, axes = _figure(8, 5)
    sizes = [row["vocab_size"] for row in rows]
    parts = (("head_ms", "LM head"), ("softmax_ms", "softmax and argmax"), ("both_ms", "both"))
    for number, (name, label) in enumerate(parts):
        axes.plot(
            sizes,
            [row[name] for row in rows],
            LINES[number],
            marker=MARKERS[number],
            color=COLORS[number],
            label=label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("vocabulary rows")
    axes.set_ylabel("milliseconds (median)")
    axes.grid(visible=True, which="both", color="#DDDDDD", linewidth=0.6)
    axes.set_title(title, fontsize="medium")
    axes.legend()
    figure.savefig(path, dpi=DPI)


def need_matplotlib() -> None:
    """Raises DependencyError without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise DependencyError(
            "pictures need matplotlib, which is not installed; pip install 'unmask[plot]', or ask for the "
            "table alone with --no-pictures"
        ) from None


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)  # type: ignore[no-untyped-call, unused-ignore]
    return figure, figure.subplots()


def _tasks(runs: Sequence[EvalRun]) -> str:
    return ", ".join(dict.fromkeys(run.results.task for run in runs))
