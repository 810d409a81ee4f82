"""How far an evaluation is: a bar with the answers' number, their rate and the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from unmask.view.remaining import TimeLeftColumn


class EvaluationView:
    """A context whose object is the `progress` of `evals.run.evaluate`; silent where no terminal is.

    Answers that were stored before count as done and say nothing of the time left.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self.what = what
        self.console = Console(stderr=True) if console is None else console
        self._bar: Progress | None = None

    def __enter__(self) -> EvaluationView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` answers are there."""
        if not self.console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("answers"),
                TimeElapsedColumn(),
                TimeLeftColumn(first=done),
                console=self.console,
            )
            self._task = self._bar.add_task(self.what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
