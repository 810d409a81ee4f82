"""Help pages that end with a list read from the code: knobs of the decoders, keys of the recipes."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from typing import Any

from typer.core import TyperCommand

PROPOSAL_KNOBS: dict[str, tuple[Any, str]] = {
    "temperature": (0.0, "0: the likeliest token; above: sampled, the higher the wilder"),
    "cfg_scale": (0.0, "weight of classifier-free guidance, 0: off; costs a second row a forward"),
    "logits_eos_inf": (False, "never propose end-of-text"),
    "confidence_eos_eot_inf": (False, "commit end-of-text and end-of-turn last"),
}
"""Knobs of the proposal, whose own module would import torch; `compat` is the decoders' too."""


class DecodeCommand(TyperCommand):
    """A command that takes decoders' knobs."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual page, then every decoder with its knobs."""
        super().format_help(ctx, formatter)
        print(knobs_page())


class TrainCommand(TyperCommand):
    """A command that takes recipe keys."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual page, then the recipes and their keys."""
        super().format_help(ctx, formatter)
        from unmask.cli.train import show_recipes

        show_recipes()


def knobs_page() -> str:
    """Decoders with their knobs, those that all have apart, and the caches."""
    from unmask import caches, decoders

    found = {
        name: {field.name: field for field in dataclasses.fields(decoders.decoder_class(name))}
        for name in decoders.names()
    }
    shared = set.intersection(*(set(fields) for fields in found.values()))
    first = next(iter(found.values()))
    lines = ["Decoders, and their knobs as key=value:"]
    for name, fields in found.items():
        lines.append(f"  {name}")
        lines.extend(_knob(fields[key]) for key in fields if key not in shared)
    lines.append("  every decoder")
    lines.extend(_knob(first[key]) for key in first if key in shared)
    lines.extend(_entry(key, default, about) for key, (default, about) in PROPOSAL_KNOBS.items())
    lines.append(f"Caches: {', '.join(caches.names())}")
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
