"""Options that several commands of `unmask bench` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unmask.cli.options import DeviceOptions
from unmask.options import option


@dataclass(frozen=True, kw_only=True)
class BenchModelOptions(DeviceOptions):
    """The measured model."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Bundled name, folder or hub id."""

    revision: Annotated[str | None, option(metavar="R")] = None
    """Branch, tag or commit of a hub id."""


@dataclass(frozen=True, kw_only=True)
class SettingOptions:
    """Settings that all entries of a comparison share."""

    task: Annotated[str | None, option(metavar="T")] = None
    """Task: word_problem (default), sudoku or countdown; or a file of rows, with --metric."""

    prompts: Annotated[str | None, option(metavar="FILE")] = None
    """File of rows without right answers; answers are compared with the first row's instead."""

    prompt: Annotated[str | None, option(metavar="TEXT")] = None
    """Prompt of each row of the file, such as '{{question}}'. Default: the field prompt or question."""

    target: Annotated[str | None, option(metavar="TEXT")] = None
    """Expected answer, such as '{{answer}}'. Default: the field answer or target."""

    metric: Annotated[str | None, option(metavar="M")] = None
    """What is right: last_number, exact, contains, letter, math or python:FILE."""

    limit: int = 50
    """Number of prompts; of a file at most."""

    gen_length: Annotated[int | None, option(metavar="N")] = None
    """Number of positions to generate. Default: 64; 32 for puzzles, 256 for a file."""

    block_length: int = 32
    """Number of positions per block, for decoders with blocks."""

    repeat: int = 1
    """Number of timed passes over the prompts."""

    max_batch_size: int = 1
    """Maximum number of answers decoded in one forward pass."""

    seed: Annotated[int, option(metavar="S")] = 0
    """Seed of the decoding."""


@dataclass(frozen=True, kw_only=True)
class OverheadOptions:
    """Sizes of the random model and of the decodes of `unmask bench overhead`."""

    vocab_size: int = 126464
    """Size of the vocabulary."""

    width: int = 4096
    """Width of the hidden states."""

    layers: int = 2
    """Number of transformer layers."""

    gen_length: int = 32
    """Number of positions to generate."""

    prompt_length: int = 224
    """Number of positions of the prompt."""

    repeat: int = 1
    """Number of timed passes."""

    batch: int = 1
    """Number of prompts per forward pass."""
