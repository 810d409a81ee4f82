"""Pages of decoders and caches with their knobs, for a terminal."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from typing import Any

from unmask import caches, decoders
from unmask.cli.help import WIDEST
from unmask.knobs import field_names
from unmask.sampling.params import SamplingParams

SHARED_BY = 5
"""Number of decoders with the same help for a knob from which it is listed once, as common."""


def decoder_page(name: str) -> str:
    """Return a decoder's summary and knobs for a terminal. Raises ConfigError for an unknown name."""
    decoders.WORKSHOP.admit(name)
    cls = decoders.decoder_class(name)
    shared = {field.name for field in dataclasses.fields(SamplingParams)}
    own = [field for field in dataclasses.fields(cls) if field.name not in shared]
    lines = [f"{name}: {_summary(cls)}", "", "Knobs, as words KEY=VALUE:"]
    lines += map(_knob, own)
    lines += ["", "Sampling, with every decoder:", *map(_knob, dataclasses.fields(SamplingParams))]
    return "\n".join(lines)


def cache_page(name: str) -> str:
    """Return a cache's summary and knobs for a terminal. Raises ConfigError for an unknown name."""
    caches.WORKSHOP.admit(name)
    cls = caches.cache_class(name)
    fields = dataclasses.fields(cls)
    lines = [f"{name}: {_summary(cls)}", ""]
    lines += ["Knobs, as words cache.KEY=VALUE:", *map(_knob, fields)] if fields else ["No knobs."]
    return "\n".join(lines)


def knob_names() -> set[str]:
    """Return the names of all decoders' knobs."""
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    return names.union(*(field_names(decoders.decoder_class(name)) for name in decoders.names()))


def all_knobs() -> str:
    """Return every decoder and cache with its knobs; common ones are listed once."""
    shared = {field.name: field for field in dataclasses.fields(SamplingParams)}
    own = {
        name: [
            field
            for field in dataclasses.fields(decoders.decoder_class(name))
            if field.name not in shared
        ]
        for name in decoders.names()
    }
    owners: dict[tuple[str, str], list[str]] = {}
    for name, fields in own.items():
        for field in fields:
            owners.setdefault((field.name, field.metadata["help"]), []).append(name)
    lines = ["Decoders, and their knobs as words KEY=VALUE:"]
    common: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name, fields in own.items():
        lines.append(f"  {name}")
        for field in fields:
            users = owners[field.name, field.metadata["help"]]
            if len(users) >= SHARED_BY:
                common[field.name] = (field, users)
            else:
                lines.append(_knob(field))
    for field, users in common.values():
        others = sorted(set(own) - set(users))
        lines.append(f"  every decoder but {', '.join(others)}" if others else "  every decoder")
        lines.append(_knob(field))
    lines += ["  every decoder", *map(_knob, shared.values())]
    lines.append("Caches (--cache C), and their knobs as words cache.KEY=VALUE:")
    for name in caches.names():
        lines += [f"  {name}", *map(_knob, dataclasses.fields(caches.cache_class(name)))]
    broken = decoders.broken() | caches.broken()
    lines += [f"Not usable: {name}: {reason}" for name, reason in broken.items()]
    return "\n".join(lines)


def _summary(cls: type[object]) -> str:
    text = (cls.__doc__ or "").strip().partition("\n\n")[0]
    return textwrap.fill(" ".join(text.split()), _width(), subsequent_indent="    ")


def _knob(field: dataclasses.Field[Any]) -> str:
    default = field.default
    shown = "null" if default is None else str(default)
    if isinstance(default, bool):
        shown = shown.lower()
    return textwrap.fill(
        f"{field.name}={shown}: {field.metadata.get('help', '')}",
        _width(),
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
    )


def _width() -> int:
    return max(40, min(WIDEST, shutil.get_terminal_size().columns - 1))
