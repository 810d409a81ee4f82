"""`unmask train`: training by a recipe, with progress and clean interruption."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from unmask.errors import ConfigError
from unmask.train.recipe import Recipe, compose, presets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.train.loop import StepLog, Trainer

INTERRUPTED_STATUS = 130


def train(
    *words: Annotated[
        str,
        Parameter(
            name="KEY=VALUE",
            help="recipe=NAME and changed keys. Default: list the recipes and all keys.",
        ),
    ],
) -> None:
    """Train a model by a recipe; an interrupted run continues where it stopped.

    `unmask train` alone lists the recipes and their keys.
    """
    run(words)


def run(words: Sequence[str]) -> None:
    """Train; without words, list the recipes and their keys."""
    if not words:
        show_recipes()
        return
    recipe = compose(list(words))
    try:
        interrupted = _train(recipe)
    except OSError as error:
        raise ConfigError(
            f"output={recipe.output!r} cannot be written: {error}; choose another folder"
        ) from None
    if interrupted is not None:
        again = shlex.join(["unmask", "train", *words])
        _note(f"interrupted; checkpoint saved in {interrupted}; to go on: {again}")
        raise SystemExit(INTERRUPTED_STATUS)
    _note(f"done: the model is in {Path(recipe.output) / 'model'}")


def _train(recipe: Recipe) -> Path | None:
    """Train to the end; after an interruption, save a checkpoint and return its folder."""
    _note("preparing")
    from unmask.demo.training_data import DemoData, demo_spec
    from unmask.train.loop import Trainer

    folder = tokenizer_folder(recipe)
    tokenizer = _tokenizer(folder)
    spec = demo_spec(recipe, tokenizer)
    trainer = Trainer(recipe, spec, DemoData(recipe, spec, tokenizer), folder)
    for text in trainer.damaged:
        _note(f"passed over {text}")
    if trainer.step >= recipe.steps:
        _note(f"{recipe.output} is at step {trainer.step} of {recipe.steps}: nothing left to train")
    elif trainer.step:
        _note(f"going on after step {trainer.step} of {recipe.steps} in {recipe.output}")
    with _stop_signals() as signals, _progress(trainer) as report:
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

        _note(f"building the tokenizer in {folder}")
        build_tokenizer(folder)
    return folder


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from unmask.engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None, "the folder holds tokenizer.json"
    return tokenizer


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; the second signal raises KeyboardInterrupt."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        _note("stopping after this step; a second signal stops immediately, without a checkpoint")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(trainer: Trainer) -> Iterator[Callable[[StepLog], None]]:
    """Yield a function that prints a line per step, and on a terminal updates a bar below."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda entry: print(entry.line(), flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    total = trainer.recipe.steps
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("train", total=total, completed=trainer.step, numbers="")

        def show(entry: StepLog) -> None:
            minutes, seconds = divmod(int(entry.eta_s), 60)
            numbers = (
                f"loss {entry.loss:.3f}  {entry.tokens_per_s:.0f} tok/s  "
                f"ETA {minutes}m{seconds:02d}s"
            )
            bar.console.print(entry.line(), markup=False, soft_wrap=True)
            bar.update(task, completed=entry.step, numbers=numbers)

        yield show


def key_help() -> dict[str, str]:
    """Return the help of each recipe key: the string that follows the field in the class."""
    (body,) = ast.parse(inspect.getsource(Recipe)).body
    assert isinstance(body, ast.ClassDef), "a recipe is a class"
    texts: dict[str, str] = {}
    name = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            texts[name] = " ".join(str(node.value.value).split())
    return texts


def show_recipes() -> None:
    """Print the recipes, and every key with its value in each."""
    recipes = {name: compose([f"recipe={name}"]) for name in presets()}
    meaning = key_help()
    console = Console(highlight=False)
    print("usage: unmask train recipe=NAME [KEY=VALUE]...\n")
    print(f"recipes: {', '.join(recipes)}\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", *(f"in {name}" for name in recipes), "meaning"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for item in dataclasses.fields(Recipe):
        if item.name == "recipe":
            continue
        values = (_spell(getattr(recipe, item.name)) for recipe in recipes.values())
        table.add_row(item.name, *values, meaning.get(item.name, ""))
    console.print(table, markup=False)


def _spell(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)
