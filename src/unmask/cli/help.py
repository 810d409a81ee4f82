"""Help pages that end with a list read from the code: knobs of the decoders, keys of the recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Commands(TyperGroup):
    """A group whose list of commands says what each does in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every command with the first sentence of its help, over as many lines as that takes."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in found if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class DecodeCommand(TyperCommand):
    """A command that takes decoders' knobs."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual page, then every decoder with its knobs."""
        super().format_help(ctx, formatter)
        formatter.write(f"\n{knobs_page()}\n")


class TrainCommand(TyperCommand):
    """A command that takes recipe keys."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual page, then the recipes and their keys."""
        super().format_help(ctx, formatter)
        from unmask.cli.train import show_recipes

        with contextlib.redirect_stdout(io.StringIO()) as page:
            show_recipes()
        formatter.write(f"\n{page.getvalue()}")


COMMON = 5
"""A knob that this many decoders explain in the same words is listed once."""


def knobs_page() -> str:
    """Decoders with their knobs, those of many apart, those of every one, and caches with theirs."""
    from unmask import caches, decoders
    from unmask.sampling.params import SamplingParams

    shared = {field.name: field for field in dataclasses.fields(SamplingParams)}
    found = {
        name: [
            field
            for field in dataclasses.fields(decoders.decoder_class(name))
            if field.name not in shared
        ]
        for name in decoders.names()
    }
    owners: dict[tuple[str, str], list[str]] = {}
    for name, fields in found.items():
        for field in fields:
            owners.setdefault((field.name, field.metadata["help"]), []).append(name)
    lines = ["Decoders, and their knobs as key=value:"]
    common: dict[str, tuple[Any, list[str]]] = {}
    for name, fields in found.items():
        lines.append(f"  {name}")
        for field in fields:
            who = owners[field.name, field.metadata["help"]]
            if len(who) >= COMMON:
                common[field.name] = (field, who)
            else:
                lines.append(_knob(field))
    for field, who in common.values():
        missing = sorted(set(found) - set(who))
        lines.append(f"  every decoder but {', '.join(missing)}" if missing else "  every decoder")
        lines.append(_knob(field))
    lines.append("  every decoder")
    lines.extend(_knob(field) for field in shared.values())
    lines.append("Caches (--cache C), and their knobs as cache.key=value:")
    for name in caches.names():
        lines.append(f"  {name}")
        lines.extend(_knob(field) for field in dataclasses.fields(caches.cache_class(name)))
    return "\n".join(lines)


def _knob(field: dataclasses.Field[Any]) -> str:
    return _entry(field.name, field.default, field.metadata.get("help", ""))


def _entry(name: str, default: Any, about: str) -> str:
    if default is None:
        shown = "null"
    else:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
    width = max(40, min(100, shutil.get_terminal_size().columns - 1))
    return textwrap.fill(
        f"{name}={shown}: {about}", width, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
