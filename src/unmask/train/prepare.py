"""Preparation of a run on data files: sources, start, encoder, tokenized rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.errors import ConfigError
from unmask.train.config import TrainConfig
from unmask.train.files import find_sources
from unmask.train.rows import RowEncoder
from unmask.train.start import Start, find_start
from unmask.train.store import ReadRules, TokenStore, build_store
from unmask.train.vocabulary import learn_tokenizer

LONGEST_DEFAULT = 1024


@dataclass(frozen=True)
class Prepared:
    """The start of a run and its rows; `held_out` is the store of `data.eval`."""

    start: Start
    store: TokenStore
    held_out: TokenStore | None
    reading: ReadRules
    packing: str


def prepare(config: TrainConfig, folder: Path) -> Prepared:
    """Read model, tokenizer and rows; tokenized rows go to `data.cache`, else below `folder`.

    A tokenizer that is learned goes to `folder/tokenizer`. Raises ConfigError and ModelError.
    """
    sources = find_sources(config.data.path, config.data.split)
    learned = folder / "tokenizer"
    if config.init is None and config.tokenizer is None and not learned.is_dir():
        learn_tokenizer(sources, config.model.vocab_size, learned)
    start = find_start(config, learned)
    most = start.spec.max_length
    if config.max_length is not None and config.max_length > most:
        raise ConfigError(
            f"max_length={config.max_length} is more than the model's context of {most}; lower it"
        )
    reading = ReadRules(
        max_length=config.max_length or min(most, LONGEST_DEFAULT),
        too_long=config.data.too_long,
        skip_bad_rows=config.data.skip_bad_rows,
        eval_fraction=config.data.eval_fraction,
        is_windowed=config.data.packing in ("auto", "within", "across"),
    )
    encoder = row_encoder(config, start)
    parent = (
        folder / "tokens" if config.data.cache is None else Path(config.data.cache).expanduser()
    )
    store = build_store(sources, encoder, reading, parent)
    held_out = None
    if config.data.eval is not None:
        own = find_sources([config.data.eval], config.data.split)
        plain = ReadRules(reading.max_length, reading.too_long, reading.skip_bad_rows)
        held_out = build_store(own, encoder, plain, parent)
    packing = config.data.packing
    if packing == "auto":
        packing = "across" if _are_texts(store) else "none"
    if packing in ("within", "across") and not _are_texts(store):
        raise ConfigError(
            f"data.packing={packing} is for texts, but the rows are {', '.join(store.account.forms)}; use "
            f"none or pack"
        )
    if start.is_causal and config.objective == "causal" and packing == "pack":
        raise ConfigError("data.packing=pack is not for objective=causal; use none")
    return Prepared(start, store, held_out, reading, packing)


def row_encoder(config: TrainConfig, start: Start) -> RowEncoder:
    """Return the encoder of a run's rows, which may be prompts alone with objective=diffu_grpo."""
    needs_answer = config.objective != "diffu_grpo"
    return RowEncoder(start.tokenizer, start.spec, config.data.format, needs_answer=needs_answer)


def _are_texts(store: TokenStore) -> bool:
    return bool((store.flags & 1).all())


@dataclass(frozen=True)
class Lengths:
    """Percentiles of the examples' lengths in tokens, and of their trained tokens."""

    levels: tuple[int, ...]
    tokens: tuple[int, ...]
    trained: tuple[int, ...]


def lengths(store: TokenStore, levels: Sequence[int] = (0, 25, 50, 75, 95, 100)) -> Lengths:
    """Return the percentiles of a store's lengths."""
    ends = np.asarray(store.ends)
    sizes = np.diff(ends, prepend=0)
    counts = np.add.reduceat(np.asarray(store.loss, np.int64), ends - sizes)
    both = [tuple(int(each) for each in np.percentile(x, list(levels))) for x in (sizes, counts)]
    return Lengths(tuple(levels), both[0], both[1])
