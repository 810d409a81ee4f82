"""`unmask config`: the configuration of a command, and the origin of each value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.eval_options import KEY_WORDS, SourceOptions, tell
from unmask.cli.options import PRINT_JSON, flat

if TYPE_CHECKING:
    from unmask.config import Sources


config = App(name="config", help="Show the configuration that a command would use.")


@config.command(name="show")
def show_command(
    *words: Annotated[str, KEY_WORDS],
    files: Annotated[SourceOptions, flat()] = SourceOptions(),
    as_json: Annotated[bool, PRINT_JSON] = False,
) -> None:
    """Print every key with its value and the layer that sets it.

    Layers, lowest first: schema default, presets of dataset, model, cache and generation, recipe, config
    file, command line.

    Args:
        as_json: Print JSON.
    """
    show(words, files.sources(), as_json)


@config.command
def reference() -> None:
    """Print the reference of all keys and presets (Markdown)."""
    from unmask.docgen.config import markdown

    print(markdown(), end="")


def show(words: Sequence[str], sources: Sources, as_json: bool) -> None:
    """Print every key with its value and its layer."""
    from unmask.config import compose, method_of
    from unmask.config.settings import rows

    composed = compose(words, sources)
    method = method_of(composed)
    entries = rows(composed, method)
    if as_json:
        keys = {key: {"value": value, "layer": layer} for key, value, layer in entries}
        what = {
            "decoder": method.decoder_name,
            "cache": method.cache_name,
            "notes": [note.message for note in method.notes],
        }
        print(json.dumps({**what, "keys": keys}, indent=2, ensure_ascii=False))
        return
    tell(method.notes)
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in entries:
            print("\t".join((row[0], spell(row[1]), row[2])))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", "value", "layer"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for key, value, layer in entries:
        quiet = "dim" if layer == "schema default" else ""
        table.add_row(*(Text(cell, quiet) for cell in (key, spell(value), layer)))
    console.print(table)


def print_job(words: Sequence[str], sources: Sources) -> None:
    """Print the configuration as YAML, as `--config FILE` takes it (Hydra's `--cfg job`)."""
    import yaml

    from unmask.config import compose, method_of
    from unmask.config.settings import rows

    composed = compose(words, sources)
    method = method_of(composed)
    tell(method.notes)
    tree: dict[str, Any] = {}
    for key, value, layer in rows(composed, method):
        if layer != "schema default":
            group, dot, name = key.partition(".")
            if dot:
                tree.setdefault(group, {})[name] = value
            else:
                tree[key] = value
    tree["generation"] = {"strategy": method.decoder_name, **_knobs(tree.get("generation", {}))}
    print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="")


def _knobs(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the decoder's knobs without the aliases that were translated into them."""
    translated = ("strategy", "alg", "num_transfer_tokens")
    return {key: value for key, value in generation.items() if key not in translated}


def spell(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(spell, value)) + "]"
    return str(value)
