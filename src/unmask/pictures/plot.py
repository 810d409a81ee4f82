"""A film as a figure of matplotlib: how many tokens each forward wrote, and when and how sure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.errors import DependencyError
from unmask.pictures.cells import Frames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (9.0, 5.0)


def figure_of(film: Frames) -> Figure:
    """Return the figure: bars of tokens per forward; below, a point per position at its forward.

    The color of a point is the probability of its token. Raises DependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("a plot needs matplotlib: pip install 'unmask[plot]'") from None
    figure = Figure(figsize=INCHES, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    forwards = [frame.forward for frame in film.frames[1:]]
    above.bar(forwards, [frame.num_new for frame in film.frames[1:]], color="#0072B2", width=0.8)
    above.set_ylabel("new tokens")
    above.set_title(film.title, fontsize="small", loc="left")
    x, y, color = [], [], []
    for position, cell in enumerate(film.frames[-1].cells):
        if cell.written is not None and cell.written.forward:
            x.append(cell.written.forward)
            y.append(position)
            confidence = cell.written.confidence
            color.append(float("nan") if confidence is None else confidence)
    points = below.scatter(
        x, y, c=color, s=14, vmin=0.0, vmax=1.0, cmap="viridis", plotnonfinite=True
    )
    below.invert_yaxis()
    below.set_xlabel("forward")
    below.set_ylabel("position")
    figure.colorbar(points, ax=below, label="probability")
    return figure
