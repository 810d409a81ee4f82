"""Progress and interruption of a training on the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from unmask.train.loop import StepLog

INTERRUPTED_STATUS = 130


def note(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; the second signal raises KeyboardInterrupt."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        note("stopping after this step; a second signal stops immediately, without a checkpoint")

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(done: int, total: int) -> Iterator[Callable[[StepLog], None]]:
    """Yield a function that prints a line per step, and on a terminal updates a bar below."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda entry: print(entry.line(), flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("train", total=total, completed=done, numbers="")

        def show(entry: StepLog) -> None:
            minutes, seconds = divmod(int(entry.eta_s), 60)
            numbers = (
                f"loss {entry.loss:.3f}  {entry.tokens_per_s:.0f} tok/s  "
                f"ETA {minutes}m{seconds:02d}s"
            )
            bar.console.print(entry.line(), markup=False, soft_wrap=True)
            bar.update(task, completed=entry.step, numbers=numbers)

        yield show
