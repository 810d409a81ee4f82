"""Progress displays on stderr: loading a model, and running an evaluation."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from unmask.plain_text import one_line

BAR_AFTER_S = 1.0
"""Seconds of loading after which the bar appears; a shorter load shows a spinner alone."""


class LoadingView:
    """Context manager that displays how far a model is loaded; its instance is the `progress` callback.

    A spinner appears at once, a bar of bytes after `after_s` seconds (0: at the first report). Both are
    erased at the end. Nothing is shown when `console` is no terminal.
    """

    def __init__(
        self,
        label: str,
        console: Console | None = None,
        after_s: float = BAR_AFTER_S,
        verb: str = "loading",
    ) -> None:
        self.label, self.after_s, self.verb = one_line(label), after_s, verb
        self.console = Console(stderr=True) if console is None else console
        self._status: Status | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> LoadingView:
        self._start = time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status(Text(f"{self.verb} {self.label}"))
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for display in (self._status, self._bar):
            if display is not None:
                display.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` bytes have been read."""
        if self._status is None or time.monotonic() - self._start < self.after_s:
            return
        if self._bar is None:
            self._status.stop()
            text = TextColumn(self.verb + " {task.description}", markup=False)
            columns = (text, BarColumn(), DownloadColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=self.console, transient=True
            )
            self._task = self._bar.add_task(self.label, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)


class EvaluationView:
    """Context manager with a bar of answers; its instance is the `progress` callback of an evaluation.

    Answers stored by an earlier start of the run count as done and are left out of the estimate of the
    remaining time. Nothing is shown when `console` is no terminal.
    """

    def __init__(self, label: str, console: Console | None = None) -> None:
        self.label = one_line(label)
        self.console = Console(stderr=True) if console is None else console
        self._bar: Progress | None = None

    def __enter__(self) -> EvaluationView:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` answers are complete."""
        if not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("answers"),
                TimeElapsedColumn(),
                TimeLeftColumn(num_stored=done),
                console=self.console,
            )
            self._task = self._bar.add_task(self.label, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)


class TimeLeftColumn(ProgressColumn):
    """Column such as "3:20 left", from the mean time of all items since the first `num_stored`.

    Rich's own column averages over one minute and stays empty when an answer takes longer.
    """

    max_refresh = 0.5

    def __init__(self, num_stored: int) -> None:
        super().__init__()
        self.num_stored = num_stored

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        elapsed, done = task.elapsed, task.completed - self.num_stored
        if elapsed is None or done <= 0 or task.total is None:
            return Text("-:-- left")
        seconds = round(elapsed / done * (task.total - task.completed))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{clock} left")
