"""`unmask train`: training by a recipe, with progress and clean interruption."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from unmask.cli.train_files import key_help, show_keys, spell
from unmask.cli.train_files import run as run_files
from unmask.cli.train_progress import INTERRUPTED_STATUS, note, progress, stop_signals
from unmask.errors import ConfigError
from unmask.train.recipe import Recipe, compose, presets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(
    *words: Annotated[
        str,
        Parameter(
            name="KEY=VALUE",
            help="data=FILE and other keys, or recipe=NAME of the bundled model. Default: list all keys.",
        ),
    ],
    dry_run: bool = False,
) -> None:
    """Train on your own data or by a recipe; an interrupted run continues where it stopped.

    `unmask train data=my.jsonl` fine-tunes the bundled model, `init=PATH_OR_HUB_ID` another one, and
    `init=null` trains from scratch. `unmask train` alone lists all keys.

    Args:
        dry_run: Print sizes, steps, memory by part and a guess of the time, from three steps; write
        nothing."""
    run(words, dry_run)


def run(words: Sequence[str], is_dry: bool = False) -> None:
    """Train; without words, list the recipes and their keys."""
    if not words:
        show_recipes()
        show_keys()
        return
    if not any(word.partition("=")[0] == "recipe" for word in words):
        run_files(words, is_dry)
        return
    if is_dry:
        raise ConfigError("--dry-run is for data=FILE, not for recipe=; leave it out")
    recipe = compose(list(words))
    try:
        interrupted = _train(recipe)
    except OSError as error:
        raise ConfigError(
            f"output={recipe.output!r} cannot be written: {error}; choose another folder"
        ) from None
    if interrupted is not None:
        again = shlex.join(["unmask", "train", *words])
        note(f"interrupted; checkpoint saved in {interrupted}; to go on: {again}")
        raise SystemExit(INTERRUPTED_STATUS)
    note(f"done: the model is in {Path(recipe.output) / 'model'}")


def _train(recipe: Recipe) -> Path | None:
    """Train to the end; after an interruption, save a checkpoint and return its folder."""
    note("preparing")
    from unmask.demo.training_data import DemoData, demo_spec
    from unmask.train.loop import Trainer

    folder = tokenizer_folder(recipe)
    tokenizer = _tokenizer(folder)
    spec = demo_spec(recipe, tokenizer)
    trainer = Trainer(recipe, spec, DemoData(recipe, spec, tokenizer), folder)
    for text in trainer.damaged:
        note(f"passed over {text}")
    if trainer.step >= recipe.steps:
        note(f"{recipe.output} is at step {trainer.step} of {recipe.steps}: nothing left to train")
    elif trainer.step:
        note(f"going on after step {trainer.step} of {recipe.steps} in {recipe.output}")
    with stop_signals() as signals, progress(trainer.step, recipe.steps) as report:
        for entry in trainer:
            report(entry)
            if signals and entry.step < recipe.steps:
                return trainer.save()
    return None


def tokenizer_folder(recipe: Recipe) -> Path:
    """Return the bundled tokenizer's folder, or build one in the output folder."""
    from unmask.models import BUNDLED

    bundled = BUNDLED["demo"]
    if (bundled / "tokenizer.json").exists():
        return bundled
    folder = Path(recipe.output) / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        from unmask.demo.tokenizer import build_tokenizer

        note(f"building the tokenizer in {folder}")
        build_tokenizer(folder)
    return folder


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from unmask.engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None, "the folder holds tokenizer.json"
    return tokenizer


def show_recipes() -> None:
    """Print the recipes, and every key with its value in each."""
    recipes = {name: compose([f"recipe={name}"]) for name in presets()}
    meaning = key_help(Recipe)
    console = Console(highlight=False)
    print("usage: unmask train recipe=NAME [KEY=VALUE]...\n")
    print(f"recipes: {', '.join(recipes)}\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", *(f"in {name}" for name in recipes), "meaning"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for item in dataclasses.fields(Recipe):
        if item.name == "recipe":
            continue
        values = (spell(getattr(recipe, item.name)) for recipe in recipes.values())
        table.add_row(item.name, *values, meaning.get(item.name, ""))
    console.print(table, markup=False)
