"""Options that `unmask eval` and `unmask tune` share: configuration keys, and their sources."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unmask.cli.messages import say
from unmask.errors import ConfigError
from unmask.options import option
from unmask.plugins import is_reference

if TYPE_CHECKING:
    from unmask.config import Sources

if TYPE_CHECKING:
    from unmask.method import Note

KEYS = {
    "model": "model",
    "revision": "model.revision",
    "task": "dataset.name",
    "data": "dataset.path",
    "decoder": "generation",
    "cache": "cache",
    "gen_length": "generation.gen_length",
    "prompt": "dataset.prompt",
    "target": "dataset.target",
    "metric": "dataset.metric",
    "shots": "dataset.shots",
    "stop": "dataset.stop",
    "limit": "limit",
    "batch_size": "batch_size",
    "seed": "seed",
    "dtype": "dtype",
    "device": "device",
    "output": "output",
}
"""Configuration key of each flag."""
CALLS = {"decoder": "generation.strategy", "cache": "cache.name"}
"""Keys of flags whose values may be files of the user's, or calls with knobs."""

KEY_WORDS = Parameter(
    name="KEY=VALUE",
    help="dataset.name=gsm8k generation=klass generation.kl_threshold=0.02 ...: any key of `unmask config "
    "show`, in Hydra's grammar.",
)


@dataclass(frozen=True, kw_only=True)
class KeyOptions:
    """Flags that are abbreviations of configuration keys."""

    model: Annotated[str | None, option(metavar="M")] = None
    """Preset, bundled name, folder or hub id: model=M."""

    revision: Annotated[str | None, option(metavar="R")] = None
    """Branch, tag or commit of a hub id: model.revision=R."""

    task: Annotated[str | None, option(metavar="T")] = None
    """Task to answer, or a file of your own (.jsonl, .csv, ..., .yaml of lm-eval): dataset.name=T."""

    prompt: Annotated[str | None, option(metavar="TEXT")] = None
    """Prompt of each row of your file, such as '{{question}}': dataset.prompt=TEXT."""

    target: Annotated[str | None, option(metavar="TEXT")] = None
    """Expected answer, such as '{{answer}}': dataset.target=TEXT."""

    metric: Annotated[str | None, option(metavar="M")] = None
    """last_number, exact, contains, letter, math, choice or python:FILE: dataset.metric=M."""

    shots: Annotated[str | None, option(metavar="FILE")] = None
    """File of worked examples: dataset.shots=FILE."""

    stop: Annotated[str | None, option(metavar="TEXT")] = None
    """Text that ends an answer: dataset.stop=TEXT."""

    data: Annotated[str | None, option(metavar="DIR")] = None
    """Folder of the data files: dataset.path=DIR. Default: $UNMASK_DATA."""

    decoder: Annotated[str | None, option("-d", metavar="D")] = None
    """Method, or a preset file: generation=D."""

    cache: Annotated[str | None, option("-c", metavar="C")] = None
    """Cache policy: cache=C."""

    gen_length: Annotated[int | None, option(metavar="N")] = None
    """Number of positions to generate: generation.gen_length=N."""

    batch_size: Annotated[int | None, option(metavar="N")] = None
    """Number of prompts in a forward pass: batch_size=N."""

    seed: Annotated[int | None, option(metavar="S")] = None
    """Seed of all randomness: seed=S."""

    dtype: Annotated[str | None, option(metavar="T")] = None
    """Type of the weights: dtype=T."""

    device: Annotated[str | None, option(metavar="X")] = None
    """Device of the model: device=X."""

    output: Annotated[str | None, option("-o", metavar="DIR")] = None
    """Folder of the results: output=DIR."""

    def words(self, words: Sequence[str]) -> list[str]:
        """Return the words, followed by the flags that are set, as overrides."""
        values = {name: getattr(self, name, None) for name in KEYS}
        flags = [word(name, str(value)) for name, value in values.items() if value is not None]
        return [*words, *flags]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Configuration files; words take precedence over them."""

    config: Annotated[Path | None, option(metavar="FILE")] = None
    """YAML file of keys, such as config.yaml of a run; words take precedence."""

    config_dir: Annotated[Path | None, option(metavar="DIR")] = None
    """Folder of your own presets, such as DIR/generation/NAME.yaml."""

    def words(self) -> list[str]:
        """Return the flags that are set, as they are typed."""
        flags = {"--config": self.config, "--config-dir": self.config_dir}
        return [
            word for flag, path in flags.items() if path is not None for word in (flag, str(path))
        ]

    def sources(self) -> Sources:
        """Return the files and the environment as sources. Raises ConfigError."""
        from unmask.config import Sources

        models, data = os.environ.get("UNMASK_MODELS"), os.environ.get("UNMASK_DATA")
        for name, value in (("UNMASK_MODELS", models), ("UNMASK_DATA", data)):
            if value and not Path(value).is_dir():
                raise ConfigError(f"environment variable {name}={value!r} is not a folder")
        return Sources(
            config_dir=self.config_dir,
            config_file=self.config,
            models_folder=Path(models) if models else None,
            data_folder=Path(data) if data else None,
            may_run_code=os.environ.get("HF_ALLOW_CODE_EVAL") == "1",
        )


def word(flag: str, value: str) -> str:
    """Return a flag as an override; a decoder or cache that is no preset (a file, a call) by its name."""
    is_preset = not is_reference(value) and "(" not in value
    key = KEYS[flag] if is_preset else CALLS.get(flag, KEYS[flag])
    return f"{key}={_quoted(value)}"


def _quoted(text: str) -> str:
    """Return a value in Hydra's grammar, quoted again where necessary: the shell removed the quotes."""
    if all(char.isalnum() or char in "_-./:%+@" for char in text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def tell(notes: Sequence[Note]) -> None:
    """Print notes on changed values to standard error, in the first process only."""
    for each in notes:
        note(each.message)


def note(text: str) -> None:
    """Print a note to standard error, in the first process only."""
    if is_first():
        say(text, "note")


def is_first() -> bool:
    """Return True if this process is the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"
