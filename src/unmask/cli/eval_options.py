"""What `unmask eval`, `unmask config` and `unmask tune` share: flags as words, and the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.errors import ConfigError

if TYPE_CHECKING:
    from unmask.method import Note

KEYS = {
    "model": "model",
    "task": "dataset.name",
    "data": "dataset.path",
    "decoder": "generation",
    "cache": "cache",
    "gen_length": "generation.gen_length",
    "limit": "limit",
    "batch_size": "batch_size",
    "seed": "seed",
    "dtype": "dtype",
    "device": "device",
    "output": "output",
}
"""The key that each flag is short for."""

KeyWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="dataset.name=gsm8k generation=klass generation.kl_threshold=0.02 ...: any key of "
        "`unmask config show`, in Hydra's grammar.",
        show_default=False,
    ),
]
ModelWord = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="Preset, bundled name, folder or hub id: model=M."),
]
TaskWord = Annotated[
    str | None, typer.Option("--task", metavar="T", help="What to answer: dataset.name=T.")
]
DataWord = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder of the data files: dataset.path=DIR, or $UNMASK_DATA."
    ),
]
DecoderWord = Annotated[
    str | None,
    typer.Option("--decoder", "-d", metavar="D", help="Method, or a preset file: generation=D."),
]
CacheWord = Annotated[
    str | None, typer.Option("--cache", "-c", metavar="C", help="Cache policy: cache=C.")
]
LengthWord = Annotated[
    str | None,
    typer.Option(
        "--gen-length", metavar="N", help="Positions to generate: generation.gen_length=N."
    ),
]
LimitWord = Annotated[
    str | None, typer.Option("--limit", metavar="N", help="Only so many examples: limit=N.")
]
BatchWord = Annotated[
    str | None,
    typer.Option("--batch-size", metavar="N", help="Prompts that share a forward: batch_size=N."),
]
SeedWord = Annotated[str | None, typer.Option("--seed", metavar="S", help="seed=S.")]
DtypeWord = Annotated[str | None, typer.Option("--dtype", metavar="T", help="dtype=T.")]
DeviceWord = Annotated[str | None, typer.Option("--device", metavar="X", help="device=X.")]
OutputWord = Annotated[
    str | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of results: output=DIR.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML of keys below the words, e.g. a run's config.yaml."
    ),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        "--config-dir", metavar="DIR", help="Your own presets: DIR/generation/NAME.yaml and so on."
    ),
]


def as_words(words: Sequence[str] | None, flags: Mapping[str, Any]) -> list[str]:
    """The words, and the flags that were given as further ones."""
    more = []
    for name, value in flags.items():
        if value is not None:
            more.append(f"{KEYS[name]}={_quoted(str(value))}")
    return [*(words or []), *more]


def _quoted(text: str) -> str:
    """A flag's value as Hydra's grammar takes it; the shell's quotes are gone by now."""
    if all(char.isalnum() or char in "_-./:%+@" for char in text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def sources(config_file: Path | None, config_dir: Path | None) -> Any:
    """Where values come from beside the words: files, and the environment, read here alone."""
    from unmask.config import Sources

    models, data = os.environ.get("UNMASK_MODELS"), os.environ.get("UNMASK_DATA")
    for name, value in (("UNMASK_MODELS", models), ("UNMASK_DATA", data)):
        if value and not Path(value).is_dir():
            raise ConfigError(f"environment variable {name}={value!r} is not a folder")
    return Sources(
        config_dir=config_dir,
        config_file=config_file,
        models_folder=Path(models) if models else None,
        data_folder=Path(data) if data else None,
        may_run_code=os.environ.get("HF_ALLOW_CODE_EVAL") == "1",
    )


def tell(notes: Sequence[Note]) -> None:
    """Print notes on standard error, in the first process alone."""
    if is_first():
        for note in notes:
            print(f"unmask: note: {note.message}", file=sys.stderr)


def is_first() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"
