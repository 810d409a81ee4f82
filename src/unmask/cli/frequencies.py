"""`unmask frequencies`: background token frequencies, counted in texts or estimated by the model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

from cyclopts import Parameter

from unmask.cli.options import DeviceOptions, flat
from unmask.durable import check_writable
from unmask.errors import ConfigError, PromptError
from unmask.models import with_revision
from unmask.options import option

DEFAULT_FIELD = "text"
STANDARD_INPUT = Path("-")
MIN_PIECE = 1 << 16
"""Minimum number of characters per tokenizer call; a long text is split after the next line end."""


@dataclass(frozen=True, kw_only=True)
class FrequencyOptions:
    """Options of `unmask frequencies`."""

    out: Annotated[Path | None, option(metavar="OUT.json")] = None
    """JSON file to write the counts to; required."""

    model: Annotated[str, option("-m", metavar="M")] = "demo"
    """Bundled name, folder or hub id."""

    revision: Annotated[str | None, option(metavar="R")] = None
    """Branch, tag or commit of a hub id."""

    estimate: bool = False
    """Estimate by the model's predictions instead of counting tokens of texts."""

    field: Annotated[str | None, option(metavar="NAME")] = None
    """Read all input as JSON lines with the text in this field. Default: text, in .jsonl files only."""

    seed: Annotated[int | None, option(metavar="S")] = None
    """Seed of --estimate. Default: 0."""

    device: Annotated[DeviceOptions, flat()] = DeviceOptions()

    force: bool = False
    """Overwrite an existing OUT.json."""


def frequencies(
    *files: Annotated[
        Path,
        Parameter(
            name="FILE",
            help="Text files; .jsonl: one JSON object per line. Default, and '-': standard input.",
        ),
    ],
    options: Annotated[FrequencyOptions, flat()] = FrequencyOptions(),
) -> None:
    """Count background token frequencies, for `frequencies=` of the decoders that debias.

    --seed, --dtype and --device need --estimate; counting only uses the model's tokenizer.
    """
    run = estimate if options.estimate else count
    loading = {"seed": options.seed, "dtype": options.device.dtype, "device": options.device.device}
    model = with_revision(options.model, options.revision)
    run(files, options.out, model, options.field, loading, options.force)


def count(
    files: Sequence[Path],
    out: Path | None,
    model: str,
    field: str | None,
    loading: Mapping[str, Any],
    is_forced: bool,
) -> None:
    """Count the tokens of texts.

    Files named *.jsonl, and all files if `field` is set, are read as JSON lines. Long texts are split
    between lines, so a token that would span a split is counted as two. `loading`: seed, dtype and
    device; an error unless None, since only `estimate` has a use for them.
    """
    for name, value in loading.items():
        if value is not None:
            raise ConfigError(f"--{name} {value} has no effect without --estimate; leave it out")
    target = _target(out, is_forced)
    sources = list(files) or [STANDARD_INPUT]
    if not files and sys.stdin.isatty():
        raise PromptError("no text; give files, pipe text in, or use --estimate")
    repeated = next((path for path in sources if sources.count(path) > 1), None)
    if repeated is not None:
        raise ConfigError(f"file {str(repeated)!r} is listed twice; list it once")

    from unmask.engine.token_frequencies import count as count_tokens
    from unmask.engine.tokenizer import load_tokenizer
    from unmask.models import read_spec, resolve_model
    from unmask.sampling.token_frequencies import save_background

    folder = resolve_model(model)
    vocab_size, tokenizer = read_spec(folder).vocab_size, load_tokenizer(folder)
    if tokenizer is None:
        raise PromptError(f"model {model!r} has no tokenizer, which counting needs; use --estimate")
    counts = count_tokens(tokenizer, _texts(sources, field))
    if not counts:
        raise PromptError("the texts are empty; nothing was written")
    if max(counts) >= vocab_size:
        raise ConfigError(
            f"the tokenizer gives token id {max(counts)}, the model has only {vocab_size} rows; use "
            "another model"
        )
    save_background(target, counts)
    print(
        f"{target}: {sum(counts.values())} tokens, {len(counts)} of {vocab_size} different",
        file=sys.stderr,
    )


def estimate(
    files: Sequence[Path],
    out: Path | None,
    model: str,
    field: str | None,
    loading: Mapping[str, Any],
    is_forced: bool,
) -> None:
    """Estimate frequencies from the model's predictions for empty canvases."""
    if files:
        raise ConfigError(
            f"--estimate reads no text, but {str(files[0])!r} is given; leave out one of the two"
        )
    if field is not None:
        raise ConfigError(f"--field {field} has no effect with --estimate; leave it out")
    target = _target(out, is_forced)

    from unmask.engine.llm import LLM
    from unmask.engine.token_frequencies import estimate as estimate_frequencies
    from unmask.sampling.token_frequencies import counts_of, save_background
    from unmask.view.progress import LoadingView

    with LoadingView(model) as progress:
        llm = LLM(model, dtype=loading["dtype"], device=loading["device"], progress=progress)
    seed = loading["seed"] or 0
    counts = counts_of(estimate_frequencies(llm.model, llm.tokenizer, seed=seed))
    save_background(target, counts)
    print(
        f"{target}: estimated by the model, {len(counts)} of {llm.spec.vocab_size} tokens above 1e-9",
        file=sys.stderr,
    )


def _target(out: Path | None, is_forced: bool) -> Path:
    """Return the file to write. Raises ConfigError before any work is done."""
    if out is None:
        raise ConfigError("no output file; name one with --out OUT.json")
    path = out.expanduser()
    check_writable(path, "background file")
    if path.exists() and not is_forced:
        raise ConfigError(
            f"background file {str(out)!r} cannot be written: it exists; use --force to overwrite it"
        )
    return path


def _texts(sources: Iterable[Path], field: str | None) -> Iterator[str]:
    for path in sources:
        is_piped = path == STANDARD_INPUT
        name = "standard input" if is_piped else f"file {str(path)!r}"
        as_lines = field is not None or path.suffix.lower() == ".jsonl"
        try:
            if is_piped:
                yield from _read(sys.stdin, name, as_lines, field)
            else:
                with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
                    yield from _read(file, name, as_lines, field)
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{name} is not UTF-8 text ({error.reason}); convert it or leave it out"
            ) from None
        except OSError as error:
            raise PromptError(
                f"{name} cannot be read: {error.strerror or error}; give a text file"
            ) from None


def _read(lines: TextIO, name: str, as_lines: bool, field: str | None) -> Iterator[str]:
    yield from _json_lines(lines, name, field or DEFAULT_FIELD) if as_lines else pieces(lines)


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """Split a text into pieces of whole lines, of at least MIN_PIECE characters except for the last.

    A piece never ends within empty lines, which tokenizers merge.
    """
    piece: list[str] = []
    size = 0
    for line in lines:
        if size >= MIN_PIECE and line.strip():
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)


def _json_lines(lines: Iterable[str], name: str, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{name}, line {number} is not JSON ({error}); correct it") from None
        if not isinstance(record, dict) or field not in record:
            content = (
                f"fields {', '.join(map(repr, record))}"
                if isinstance(record, dict)
                else "no object"
            )
            raise PromptError(
                f"{name}, line {number} has no field {field!r} but {content}; name the text's field with "
                "--field NAME"
            )
        if not isinstance(record[field], str):
            raise PromptError(
                f"{name}, line {number}: field {field!r} holds a {type(record[field]).__name__}, not "
                "text; name the text's field with --field NAME"
            )
        yield from pieces(record[field].splitlines(keepends=True))
