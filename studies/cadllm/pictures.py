"""Plots of the README, drawn from `results/` alone. Nothing depends on color alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import parts
import stats
from cells import HERE, Measured, stored
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FOLDER = HERE / "pictures"
RESULTS = HERE / "results"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "osD^v"
LINES = ("-", "--", ":", "-.", "-")

DenseStore = dict[str, Measured]


def figure(columns: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Any]]:
    """Return a figure with axes side by side."""
    made = Figure(figsize=(width * columns, height), dpi=110, layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(1, columns, i + 1) for i in range(columns)]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: Figure, name: str) -> None:
    """Write a plot without a date, so that the same numbers give the same file."""
    FOLDER.mkdir(exist_ok=True)
    made.savefig(FOLDER / f"{name}.png", metadata={"Software": None})


def share(got: Measured) -> tuple[float, list[list[float]]]:
    """Return percent right, and the distances to the ends of the interval."""
    found = stats.wilson(sum(got.right), len(got.right))
    low, high = found.value - found.low, found.high - found.value
    return 100 * found.value, [[100 * low], [100 * high]]


def speed(got: Measured) -> float:
    """Return answer tokens per forward."""
    return sum(got.tokens) / sum(got.forwards)


def ablation(store: DenseStore) -> None:
    """Plot quality and speed of every arm of the ablation, by task."""
    made, axes = figure(2, 7.0, 5.2)
    for ax, task in zip(axes, parts.TASKS, strict=True):
        labels = list(parts.ABLATION)
        for row, (label, method) in enumerate(parts.ABLATION.items()):
            got = store.get(parts.cell(task, method).key)
            if got is None:
                continue
            value, ends = share(got)
            published = "published" in label
            ax.errorbar(
                value, row, xerr=ends, fmt="s" if published else "o", capsize=3,
                color=COLORS[1] if published else COLORS[0],
                mfc="white" if published else None,
            )  # fmt: skip
            ax.annotate(f"{speed(got):.2f}", (1.02, row), xycoords=("axes fraction", "data"))
        ax.set_yticks(range(len(labels)), labels if ax is axes[0] else [""] * len(labels))
        ax.invert_yaxis()
        ax.set_xlabel("exact, % (95 % interval); right: answer tokens per forward")
        ax.set_title({"word": "word problems", "sudoku": "Sudoku, 8 blanks"}[task])
    save(made, "ablation")


def reliability(store: DenseStore) -> None:
    """Plot reliability diagrams of the shifted sets and of the sharpened model."""
    path = RESULTS / "reliability.json"
    if not path.exists():
        return
    found = json.loads(path.read_text())
    groups = (
        ("as trained, and other wordings", ("word", "names", "reworded", "noise", "distractor")),
        ("other numbers, other format", ("word", "large", "sudoku", "dots")),
        ("word problems, logits multiplied", tuple(f"sharpness {s:g}" for s in parts.SHARPNESS)),
    )
    made, axes = figure(3)
    for ax, (title, names) in zip(axes, groups, strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", lw=1)
        for i, name in enumerate(name for name in names if name in found):
            bins = [row for row in found[name]["bins"][:-1] if row[2] >= 10]
            ax.plot(
                [c / n for c, _, n in bins], [r / n for _, r, n in bins],
                marker=(*MARKERS, "P")[i], ls=(*LINES, "--")[i], color=(*COLORS, "0.3")[i],
                label=f"{name}, ECE {found[name]['ece'][0]:.3f}", ms=4,
            )  # fmt: skip
        ax.set(xlabel="confidence of the top proposal", ylabel="share right", title=title)
        ax.legend(fontsize=8)
    save(made, "reliability")


def shift(store: DenseStore) -> None:
    """Plot accuracy of one token per forward, threshold and CadLLM on every prompt set."""
    made, (left, right) = figure(2, 5.6)
    arms = {"one a forward": parts.ONE, "threshold 0.9": parts.THRESHOLD, "CadLLM": parts.CADLLM}
    for i, (label, method) in enumerate(arms.items()):
        for row, name in enumerate(parts.SHIFTED):
            got = store.get(parts.shift_cell(name, method).key)
            if got is None:
                continue
            value, ends = share(got)
            style = {"fmt": MARKERS[i], "color": COLORS[i], "capsize": 2}
            said = label if row == 0 else None
            left.errorbar(value, row + 0.2 * (i - 1), xerr=ends, label=said, **style)
            right.plot(speed(got), row + 0.2 * (i - 1), MARKERS[i], color=COLORS[i])
    for ax, title in ((left, "exact, % (95 % interval)"), (right, "answer tokens per forward")):
        names = parts.SHIFTED if ax is left else [""] * len(parts.SHIFTED)
        ax.set_yticks(range(len(parts.SHIFTED)), names)
        ax.set_ylim(len(parts.SHIFTED) - 0.5, -0.5)
        ax.set_xlabel(title)
    left.legend(fontsize=8)
    save(made, "shift")


def sharpness(store: DenseStore) -> None:
    """Plot quality and speed by the factor of the logits."""
    made, (left, right) = figure(2)
    for i, (label, method) in enumerate(
        {"threshold 0.9": parts.THRESHOLD, "CadLLM": parts.CADLLM}.items()
    ):
        cells = [(s, store.get(parts.sharp_cell(method, s).key)) for s in parts.SHARPNESS]
        there = [(s, got) for s, got in cells if got is not None]
        if not there:
            continue
        xs = [s for s, _ in there]
        shares = [share(got) for _, got in there]
        ends = [[end[side][0] for _, end in shares] for side in (0, 1)]
        style = {"marker": MARKERS[i], "ls": LINES[i], "color": COLORS[i], "label": label}
        left.errorbar(xs, [value for value, _ in shares], yerr=ends, capsize=3, **style)
        right.plot(xs, [speed(got) for _, got in there], **style)
    for ax, title in ((left, "exact, %"), (right, "answer tokens per forward")):
        ax.set(xlabel="logits times (above 1: too sure)", ylabel=title, xscale="log")
        ax.set_xticks(parts.SHARPNESS, [f"{s:g}" for s in parts.SHARPNESS])
        ax.minorticks_off()
        ax.legend(fontsize=8)
    save(made, "sharpness")


def lengths(store: DenseStore) -> None:
    """Plot forwards and quality of short answers by the length of the canvas."""
    made, axes = figure(2)
    arms = {
        "threshold 0.9": parts.THRESHOLD,
        "CadLLM, code": parts.CADLLM,
        "CadLLM, paper": parts.PAPER,
    }
    for i, (label, method) in enumerate(arms.items()):
        cells = [(n, store.get(parts.length_cell(method, n).key)) for n in parts.LENGTHS]
        there = [(n, got) for n, got in cells if got is not None]
        style = {"marker": MARKERS[i], "ls": LINES[i], "color": COLORS[i], "label": label}
        xs = [n for n, _ in there]
        axes[0].plot(xs, [sum(got.forwards) / len(got.forwards) for _, got in there], **style)
        axes[1].plot(xs, [share(got)[0] for _, got in there], **style)
    for ax, title in zip(axes, ("forwards an answer", "exact, %"), strict=True):
        ax.set(xlabel="positions of the canvas", ylabel=title)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8)
    save(made, "lengths")


def dynamics(store: DenseStore) -> None:
    """Plot mean confidence, block and commits along long canvases."""
    path = RESULTS / "dynamics.json"
    if not path.exists():
        return
    found = json.loads(path.read_text())
    made, axes = figure(3, 4.6)
    names = ("mean_confidence", "block_length", "committed")
    for ax, name in zip(axes, names, strict=True):
        arms = (
            ("padding", 900, parts.CADLLM),
            ("padding", 900, parts.PAPER),
            ("essay", 512, parts.CADLLM),
        )
        for i, (kind, length, method) in enumerate(arms):
            row = found.get(f"{kind} {length} {method}")
            if row is None:
                continue
            ys = [part.get(name) for part in row["parts"]]
            ax.plot(
                [length * (k + 0.5) / len(ys) for k in range(len(ys))], ys, marker=MARKERS[i], ls=LINES[i],
                color=COLORS[i], ms=4, label=f"{kind}, {'paper' if method == parts.PAPER else 'code'}",
            )  # fmt: skip
        ax.set(xlabel="position of the answer", ylabel=name.replace("_", " "))
        ax.set_ylim(bottom=0)
    if axes[0].lines:
        axes[0].legend(fontsize=8)
    save(made, "dynamics")


def front(store: DenseStore) -> None:
    """Plot quality against tokens per forward and per computed position, without and with a cache."""
    made, axes = figure(2, 6.5, 5.5)
    columns = [("demo", "none"), ("demo", "dual"), ("demo", "vicinity"), ("blocks", "block_causal")]
    for i, (model, cache) in enumerate(columns):
        for label in parts.DECODERS:
            got = store.get(parts.front_cell(model, label, cache).key)
            if got is None:
                continue
            value = share(got)[0]
            for ax, x in zip(
                axes, (speed(got), 100 * sum(got.tokens) / sum(got.queries)), strict=True
            ):
                ax.plot(x, value, MARKERS[i], color=COLORS[i], ms=5, mfc="none")
                if (model, cache) in (("demo", "dual"), ("blocks", "block_causal")):
                    below = list(parts.DECODERS).index(label) % 2
                    offset = (3, -8 if below else 3)
                    ax.annotate(label, (x, value), offset, textcoords="offset points", fontsize=6)
        axes[0].plot([], [], MARKERS[i], color=COLORS[i], mfc="none", label=f"{model}, {cache}")
    axes[0].set(xlabel="answer tokens per forward", ylabel="exact, %")
    axes[1].set(xlabel="answer tokens per 100 positions computed", ylabel="exact, %")
    axes[0].legend(fontsize=8)
    save(made, "front")


def heads(store: DenseStore) -> None:
    """Plot milliseconds of the parts of a reading by vocabulary size: CadLLM's Fig. 1b."""
    path = RESULTS / "timing.json"
    rows = json.loads(path.read_text()).get("head", {}).get("rows", {}) if path.exists() else {}
    if not rows:
        return
    made, (ax,) = figure(1, 6.5, 4.5)
    for i, job in enumerate(next(iter(rows.values()))):
        ys = [1000 * sorted(row[job])[len(row[job]) // 2] for row in rows.values()]
        ax.plot(
            [int(size) for size in rows], ys, marker=(*MARKERS, "P")[i], ls=(*LINES, "--")[i],
            color=(*COLORS, "0.3")[i], label=job,
        )  # fmt: skip
    ax.set(
        xscale="log", yscale="log", xlabel="tokens in the vocabulary", ylabel="ms for 32 positions"
    )
    ax.legend(fontsize=8)
    save(made, "heads")


PICTURES: tuple[Callable[[DenseStore], None], ...] = (
    ablation, reliability, shift, sharpness, lengths, dynamics, front, heads,
)  # fmt: skip


def draw() -> None:
    """Draw every plot whose numbers are stored."""
    store = stored()
    for picture in PICTURES:
        picture(store)
