"""The progress bar of a call: on by default in notebooks and terminals, once a call takes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from unmask.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

ProgressLike = bool | Callable[[int, int], None] | None
"""True, False, a function of the finished and of all items, or None: if someone can see a bar."""
BAR_AFTER_S = 1.0
"""Seconds after which a bar appears that was not asked for; a shorter call shows nothing."""


class CallProgress:
    """Context manager that reports the progress of a call; see `ProgressLike`.

    The bar is drawn on stderr (in a notebook: below the cell) and erased at the end, but stays in a
    file. `label`: the word in front of it, `unit`: what is counted. Raises ConfigError for another value of
    `progress`.
    """

    def __init__(self, progress: ProgressLike, label: str, unit: str) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise ConfigError(
                f"progress={progress!r} must be True, False, a function (done, total), or left out"
            )
        self._progress, self._label, self._unit = progress, label, unit
        self._start_s = time.monotonic()
        self._bar: Bar | None = None
        self._is_shown: bool | None = progress if isinstance(progress, bool) else None

    def __enter__(self) -> CallProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` items are finished."""
        if callable(self._progress):
            self._progress(done, total)
            return
        if self._is_shown is False:
            return
        if self._bar is None:
            if self._progress is None and time.monotonic() - self._start_s < BAR_AFTER_S:
                return
            self._bar = self._begin(total)
            if self._bar is None:
                self._is_shown = False
                return
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _begin(self, total: int) -> Bar | None:
        """Return a started bar, or None where nobody sees one."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        console = Console(stderr=True)
        if self._progress is None and not (console.is_terminal or console.is_jupyter):
            return None
        unit = TextColumn(self._unit)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            unit,
            TimeLeft(),
            console=console,
            transient=console.is_terminal or console.is_jupyter,
        )
        bar.add_task(self._label, total=total)
        bar.start()
        return bar
