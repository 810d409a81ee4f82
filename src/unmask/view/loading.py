"""What a terminal shows while a model is loaded: that it is, and from the second second on how far."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status

BAR_AFTER_S = 1.0
"""A shorter load gets no bar."""


class LoadingView:
    """A context whose object is the `progress` of loading; silent where `console` is no terminal.

    `after_s` seconds pass before the bar comes (0: at the first report). Everything is wiped at the end.
    """

    def __init__(
        self,
        what: str,
        console: Console | None = None,
        after_s: float = BAR_AFTER_S,
        verb: str = "loading",
    ) -> None:
        self.what, self.after_s, self.verb = what, after_s, verb
        self.console = Console(stderr=True) if console is None else console
        self._status: Status | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> LoadingView:
        self._start = time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status(f"{self.verb} {self.what}")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for shown in (self._status, self._bar):
            if shown is not None:
                shown.stop()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes were read."""
        if self._status is None or time.monotonic() - self._start < self.after_s:
            return
        if self._bar is None:
            self._status.stop()
            text = TextColumn(self.verb + " {task.description}")
            columns = (text, BarColumn(), DownloadColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=self.console, transient=True
            )
            self._task = self._bar.add_task(self.what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
