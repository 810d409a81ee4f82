"""Help pages: a plain layout for flags and commands, and short pages of decoders and caches."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

WIDEST = 100
LABEL_WIDTH = 26
"""Maximum width of a flag with its metavar; the text of a longer one starts on the next line."""
METAVARS = {"INT": "N", "FLOAT": "X", "STR": "TEXT"}
QUIET_DEFAULTS = ("", "()", "None", "False")
"""Defaults that are not printed."""


class PlainHelp:
    """Help in two columns without frames, as wide as the terminal up to 100 columns."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a section: its title, then a row per entry."""
        rows = [(_label(entry), _text(entry)) for entry in panel.entries]
        if rows:
            lines = [f"{panel.title}:", *columns(rows, min(WIDEST, console.width))]
            console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
            console.print()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: object) -> None:
        """Print the usage line."""
        text = str(usage).strip()
        if text:
            console.print(f"Usage: {text}", markup=False, highlight=False, soft_wrap=True)
            console.print()

    def render_description(
        self, console: Console, options: ConsoleOptions, description: object
    ) -> None:
        """Print the description, its paragraphs wrapped anew."""
        text = str(getattr(description, "primary_renderable", description) or "")
        for paragraph in text.split("\n\n"):
            lines = textwrap.wrap(" ".join(paragraph.split()), min(WIDEST, console.width))
            console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
            console.print()


def columns(rows: Iterable[tuple[str, str]], width: int, label_width: int = 0) -> list[str]:
    """Return labels and texts side by side, wrapped to `width` columns."""
    rows = list(rows)
    label_width = label_width or min(LABEL_WIDTH, max(len(label) for label, _ in rows))
    lines = []
    for label, text in rows:
        wrapped = textwrap.wrap(text, max(20, width - label_width - 4), break_on_hyphens=False)
        first = wrapped.pop(0) if wrapped and len(label) <= label_width else ""
        lines.append(f"  {label:<{label_width}}  {first}".rstrip())
        lines += [f"{'':{label_width + 4}}{line}" for line in wrapped]
    return lines


def _label(entry: HelpEntry) -> str:
    names = [*entry.positive_shorts, *entry.positive_names]
    if entry.default != "False":
        names += entry.negative_names
    label = getattr(entry, "positional_label", None)  # not in cyclopts 4, for Python 3.10
    if label is not None:
        return str(label)
    metavar = str(getattr(entry, "metavar", None) or "")
    plain = metavar.removesuffix("...")
    return f"{', '.join(names)} {METAVARS.get(plain, plain)}".rstrip()


def _text(entry: HelpEntry) -> str:
    inner = getattr(entry.description, "primary_renderable", entry.description)
    text = " ".join(str(inner or "").split())
    default = str(entry.default or "")
    if default not in QUIET_DEFAULTS and "Default:" not in text:
        text = f"{text} Default: {'on' if default == 'True' else default.removesuffix('.0')}."
    return text
