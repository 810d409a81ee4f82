"""`unmask data`: a look at rows before a model is trained on them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from unmask.cli.options import PRINT_JSON

if TYPE_CHECKING:
    from unmask.train.prepare import Prepared

data = App(name="data", help="Look at the rows of a training before it is run.")

NUM_SAMPLES = 3
MAX_SAMPLE_TOKENS = 400


@data.command
def inspect(
    *words: Annotated[
        str, Parameter(name="FILE", help="Data files, and key=value as of `unmask train`.")
    ],
    as_json: Annotated[bool, PRINT_JSON] = False,
) -> None:
    """Show rows, lengths, what would be masked, and what is dropped or cut and why.

    Takes the keys of `unmask train` (init=, max_length=, data.format=, ...); writes nothing.

    Args:
        as_json: Print JSON.
    """
    from unmask.train.config import compose
    from unmask.train.prepare import lengths, prepare

    files = [word for word in words if "=" not in word or Path(word).exists()]
    settings = [word for word in words if word not in files]
    if files:
        listed = json.dumps(files) if len(files) > 1 else files[0]
        settings.append(f"data={listed}")
    config = compose(settings)
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        prepared = prepare(config, Path(folder))
        if as_json:
            content = {
                **asdict(prepared.store.account),
                "max_length": prepared.reading.max_length,
                "packing": prepared.packing,
                "lengths": asdict(lengths(prepared.store)),
            }
            print(json.dumps(content, indent=1))
        else:
            show(prepared)


def show(prepared: Prepared) -> None:
    """Print the account of the rows, their lengths and a few of them."""
    from rich.console import Console

    from unmask.train.prepare import lengths

    console = Console(highlight=False, soft_wrap=True)
    account = prepared.store.account
    forms = ", ".join(f"{count} {name}" for name, count in sorted(account.forms.items()))
    console.print(f"rows      {account.rows} ({forms})", markup=False)
    console.print(
        f"left out  {account.bad} unreadable, {account.dropped} too long; held out {account.held_out}"
    )
    console.print(
        f"cut       {account.truncated} rows at max_length {prepared.reading.max_length}, "
        f"{account.cut_tokens} tokens lost; {account.untrained_turns} turns not trained"
    )
    console.print(
        f"tokens    {account.tokens}, trained (may be masked) {account.trained_tokens}; "
        f"packing {prepared.packing}"
    )
    sizes = lengths(prepared.store)
    for name, values in (("length", sizes.tokens), ("trained", sizes.trained)):
        parts = (f"{level}%: {value}" for level, value in zip(sizes.levels, values, strict=True))
        console.print(f"{name:<9} {'  '.join(parts)}")
    for kind, texts in account.notes.items():
        for text in texts:
            console.print(f"{kind:<9} {text}", markup=False)
    for index in range(min(NUM_SAMPLES, len(prepared.store))):
        console.print()
        _show_row(console, prepared, index)


def _show_row(console: object, prepared: Prepared, index: int) -> None:
    """Print a row: prompt dim, trained tokens green; without color they stand in brackets."""
    from rich.console import Console
    from rich.text import Text

    from unmask.plain_text import printable

    assert isinstance(console, Console), "made by show"
    ids, loss, _ = prepared.store.example(index)
    text = Text(f"row {index}: ")
    tokenizer = prepared.start.tokenizer
    shown = ids[:MAX_SAMPLE_TOKENS].tolist()
    flags = loss[:MAX_SAMPLE_TOKENS].tolist()
    at = 0
    while at < len(shown):
        end = at
        while end < len(shown) and flags[end] == flags[at]:
            end += 1
        run = shown[at:end]
        piece = " ".join(map(str, run)) if tokenizer is None else str(tokenizer.decode(run))
        piece = printable(piece)
        if not flags[at]:
            text.append(piece, style="dim")
        elif console.is_terminal:
            text.append(piece, style="green")
        else:
            text.append(f"[{piece}]")
        at = end
    if len(ids) > MAX_SAMPLE_TOKENS:
        text.append(f" ... ({len(ids)} tokens)")
    console.print(text)
