"""`unmask train data=...`: a training on data files, with progress, interruption and the dry run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from unmask.cli import launcher
from unmask.cli.train_progress import INTERRUPTED_STATUS, note, progress, stop_signals
from unmask.errors import ConfigError
from unmask.train.config import GROUPS, PRESETS, TrainConfig, compose
from unmask.train.recipe import Recipe

if TYPE_CHECKING:
    from unmask.train.run import FileTrainer


def run(words: Sequence[str], is_dry: bool = False) -> None:
    """Train on data files. Raises SystemExit after an interruption."""
    config = compose(words)
    if not config.data.path:
        raise ConfigError("no data; give a file, e.g. data=my.jsonl, or the demo's recipe=demo")
    if launcher.is_started() and config.parallel == "none" and launcher.size() > 1:
        raise ConfigError("several processes of torchrun need parallel=fsdp; add it")
    if not launcher.is_follower():
        note("preparing")
    if is_dry:
        show_estimate(config)
        return
    from unmask.train.run import FileTrainer

    score = None
    if config.watch.tasks:
        from unmask.evals.while_training import task_scorer

        score = task_scorer(config.watch.tasks, config.watch.task_limit)
    try:
        trainer = FileTrainer(config, score=score)
        if launcher.is_follower():
            for _ in trainer:
                pass
            return
        _describe(trainer)
        with stop_signals() as signals, progress(trainer.step, trainer.steps) as report:
            for entry in trainer:
                report(entry)
                if signals and launcher.size() == 1 and entry.step < entry.steps:
                    folder = trainer.save()
                    again = shlex.join(["unmask", "train", *words])
                    note(f"interrupted; checkpoint saved in {folder}; to go on: {again}")
                    raise SystemExit(INTERRUPTED_STATUS)
    except OSError as error:
        raise ConfigError(
            f"output={config.output!r} cannot be written: {error}; choose another folder"
        ) from None
    note(f"done: the model is in {trainer.output / 'final'}")


def show_estimate(config: TrainConfig) -> None:
    """Print the figures of a run from three steps."""
    from unmask.train.dry_run import estimate

    found = estimate(config)
    minutes, seconds = divmod(round(found.total_s), 60)
    for name, text in (
        ("parameters", f"{found.parameters:,}, trained {found.trained:,}"),
        ("rows", f"{found.rows:,}; {found.units_per_epoch:,} units an epoch"),
        ("steps", f"{found.steps:,}, {found.tokens_per_step:,.0f} tokens each (padding included)"),
        ("process", f"{_size(found.process_bytes)} (Python and libraries)"),
        ("weights", _size(found.weights_bytes)),
        ("gradients", _size(found.gradients_bytes)),
        ("optimizer", _size(found.optimizer_bytes)),
        ("activations", _size(found.activations_bytes)),
        ("peak", f"{_size(found.peak_bytes)} in all"),
        (
            "time",
            f"{minutes} min {seconds} s: {found.step_s:.3g} s a step, {found.other_s:.3g} s for "
            f"evaluations and checkpoints",
        ),
    ):
        print(f"{name:<12} {text}")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _describe(trainer: FileTrainer) -> None:
    """Tell the account of the rows and the sizes of the run."""
    account, (total, trained) = trainer.prepared.store.account, trainer.network.num_parameters
    for text in trainer.damaged:
        note(f"passed over {text}")
    note(
        f"{account.rows} rows ({account.held_out} held out; {account.truncated} cut, {account.dropped} too "
        f"long, {account.bad} unreadable), {account.tokens} tokens"
    )
    for kind in ("bad", "dropped", "truncated"):
        for text in account.notes.get(kind, [])[:3]:
            note(f"  {kind}: {text}")
    note(f"{total} parameters, {trained} trained; {trainer.steps} steps")
    if trainer.step >= trainer.steps:
        note(
            f"{trainer.output} is at step {trainer.step} of {trainer.steps}: nothing left to train"
        )
    elif trainer.step:
        note(f"going on after step {trainer.step} of {trainer.steps} in {trainer.output}")


def key_help(cls: type[object] = Recipe) -> dict[str, str]:
    """Return the help of each field of a dataclass: the string that follows it in the class."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef), "settings are a class"
    texts: dict[str, str] = {}
    name = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            texts[name] = " ".join(str(node.value.value).split())
    return texts


def show_keys() -> None:
    """Print the presets, and every key by group with its default and its effect."""
    console = Console(highlight=False)
    print("usage: unmask train data=FILE [preset=NAME] [config=FILE.yaml] [KEY=VALUE]...\n")
    for name, values in PRESETS.items():
        print(f"preset={name}: {' '.join(f'{k}={v}' for k, v in values.items()) or '(defaults)'}")
    plain = [item.name for item in dataclasses.fields(TrainConfig) if item.name not in GROUPS]
    for title, cls, prefix in (
        ("run", TrainConfig, ""),
        *((name, cls, f"{name}.") for name, cls in GROUPS.items()),
    ):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in (title, "default", "meaning"):
            table.add_column(column, overflow="fold", no_wrap=column == title)
        texts, default = key_help(cls), cls()
        names = plain if cls is TrainConfig else [item.name for item in dataclasses.fields(cls)]
        for name in names:
            table.add_row(prefix + name, spell(getattr(default, name)), texts.get(name, ""))
        console.print(table, markup=False)


def spell(value: object) -> str:
    """Return a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)
