"""Messages on standard error: one line each, of text that is safe to print."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from unmask.plain_text import one_line

MAX_WARNINGS = 100
"""Maximum number of different warnings that one command prints."""


def say(text: str, kind: str = "") -> None:
    """Print a line such as "unmask: note: ..." to standard error; `kind` stands before the text."""
    start = f"unmask: {kind}: " if kind else "unmask: "
    print(f"{start}{one_line(text)}", file=sys.stderr, flush=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print warnings as messages, each text once, instead of in Python's form with a line of code."""
    said: set[str] = set()
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = one_line(str(message))
        if text not in said and len(said) < MAX_WARNINGS:
            said.add(text)
            say(text, "warning")

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
