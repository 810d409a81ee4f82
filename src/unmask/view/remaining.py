"""The time that is left, from the mean pace so far."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task
from rich.text import Text


class TimeLeftColumn(ProgressColumn):
    """ "3:20 left", by the mean time of what was done since `first` were.

    Rich's own column looks back a minute and shows nothing when an answer takes longer.
    """

    max_refresh = 0.5

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def render(self, task: Task) -> Text:
        """The column's text."""
        elapsed, done = task.elapsed, task.completed - self.first
        if elapsed is None or done <= 0 or task.total is None:
            return Text("-:-- left")
        seconds = round(elapsed / done * (task.total - task.completed))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        shown = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{shown} left")
