"""Plots of the report. Nothing depends on color alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.bench.plot import COLORS, DPI, MARKERS, Point, new_figure, save, set_limits
from unmask.canvas import Floats
from unmask.evals.results import EvalRun

LINES = ("-", "--", "-.", ":")


def draw_front(runs: Sequence[EvalRun], path: Path, x: str = "tokens_per_second") -> None:
    """Plot accuracy against speed, one labeled point per run; a dashed line joins the Pareto front."""
    figure, axes = new_figure(9, 6)
    labels = []
    for number, run in enumerate(runs):
        m = run.results.metrics
        y, error = 100 * m["accuracy"], 100 * m.get("accuracy_stderr", 0.0)
        labels.append(Point(run.name, m[x], (0.0, 0.0), y, error, number == 0, False))
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
    xs, ys = zip(*front([(point.x, point.y) for point in labels]), strict=True)
    axes.plot(xs, ys, "--", color="#888888", label="no run is better in both")
    set_limits(axes, labels)
    axes.set_xlabel(x.replace("_", " ").replace("tokens", "response tokens", 1))
    axes.set_title(f"{_tasks(runs)}: quality and speed")
    axes.legend(loc="lower right", fontsize="small")
    save(figure, path, axes, labels)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of points to be maximized in both coordinates, by growing x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def draw_confidence(run: EvalRun, values: Floats, path: Path) -> None:
    """Plot confidence by forward and position. Source: arXiv:2512.07173 (CadLLM), Fig. 1a."""
    figure, axes = new_figure(9, 5)
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
    axes.set_xlabel("position in the answer")
    axes.set_ylabel("forward")
    axes.set_title(
        f"{run.results.task}, {run.results.method}, cache {run.results.cache}: mean confidence in open "
        f"positions\n{len(run.results.docs)} documents; gray: all are decided there",
        fontsize="medium",
    )
    figure.colorbar(image, ax=axes, label="confidence")
    figure.savefig(path, dpi=DPI)


def draw_early(runs: Sequence[EvalRun], path: Path) -> None:
    """Plot the share of answers already right by forward. Source: arXiv:2508.19982 (Prophet), Fig. 1."""
    figure, axes = new_figure(8, 5)
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
    """Plot milliseconds of LM head and softmax by vocabulary size. Source: arXiv:2512.07173, Fig. 1b."""
    figure, axes = new_figure(8, 5)
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


def _tasks(runs: Sequence[EvalRun]) -> str:
    return ", ".join(dict.fromkeys(run.results.task for run in runs))
