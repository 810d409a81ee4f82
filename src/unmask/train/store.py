"""Tokenized rows in memory-mapped files, and the account of every row that was changed or left out.

A store is a folder that is named by a hash of the data, the tokenizer and the settings that change its
content: `ids.bin` (uint32) and `loss.bin` (one byte a token) of all examples one after the other,
`ends.bin` (int64, where each example ends), `flags.bin` (a byte an example: 1 a document, 2 held out),
and `account.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from unmask.data.records import DataRow
from unmask.durable import new_folder
from unmask.errors import ConfigError, cut_text
from unmask.train.files import RowSource
from unmask.train.rows import RowEncoder, TokenRow

TEXT, HELD_OUT = 1, 2
ACCOUNT = "account.json"
MAX_LISTED = 20
"""Maximum number of rows of a kind that an account lists by their place."""
VERSION = 1


@dataclass
class Account:
    """Counts of rows by what became of them; each row is in exactly one of the first three."""

    rows: int = 0
    """Rows that are trained or held out."""
    dropped: int = 0
    """Rows left out as too long, or without a trained token within `max_length`."""
    bad: int = 0
    """Rows that cannot be read."""
    held_out: int = 0
    truncated: int = 0
    cut_tokens: int = 0
    """Tokens that truncation removed."""
    untrained_turns: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    forms: dict[str, int] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Kind of change (dropped, bad, truncated): the first rows with the reason."""

    def note(self, kind: str, text: str) -> None:
        """Add a row to the list of its kind, which is bounded."""
        listed = self.notes.setdefault(kind, [])
        if len(listed) < MAX_LISTED:
            listed.append(cut_text(text, 400))


@dataclass(frozen=True)
class ReadRules:
    """Settings of reading: `max_length`, rules for long and bad rows, share and kind of held-out rows."""

    max_length: int
    too_long: str = "truncate"
    skip_bad_rows: int = 0
    eval_fraction: float = 0.0
    is_windowed: bool = False
    """Documents are cut into windows later, so none is too long."""


class TokenStore:
    """The tokenized examples of a finished store; `sizes` of each source's part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / ACCOUNT).read_text(encoding="utf-8"))
        self.account = Account(**content["account"])
        self.sizes: list[int] = content["sizes"]
        self.ids = _mapped(folder / "ids.bin", np.uint32)
        self.loss = _mapped(folder / "loss.bin", np.bool_)
        self.ends = _mapped(folder / "ends.bin", np.int64)
        self.flags = _mapped(folder / "flags.bin", np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> tuple[int, int]:
        """Return where example `index` begins and ends."""
        return (int(self.ends[index - 1]) if index else 0), int(self.ends[index])

    def example(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], bool]:
        """Return ids, trained flags, and True for a document."""
        start, end = self.span(index)
        is_text = bool(self.flags[index] & TEXT)
        return self.ids[start:end].astype(np.int64), np.array(self.loss[start:end]), is_text


Scalar = TypeVar("Scalar", bound=np.generic)


def _mapped(path: Path, dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def examples(
    sources: Iterable[RowSource], encoder: RowEncoder, reading: ReadRules, account: Account
) -> Iterator[tuple[int, DataRow, TokenRow]]:
    """Yield (number of the source, row, example) of every row that stays, and count all of them.

    Raises ConfigError for the first row that cannot be read beyond `skip_bad_rows`, and for a row that is
    too long under too_long=error.
    """
    for number, source in enumerate(sources):
        for row in source.rows():
            try:
                if isinstance(row, ConfigError):
                    raise row
                example = encoder.encode(row)
            except ConfigError as error:
                account.bad += 1
                account.note("bad", str(error))
                if account.bad > reading.skip_bad_rows:
                    raise _too_bad(error, reading.skip_bad_rows) from None
                continue
            short = _shortened(example, row, reading, account)
            if short is None:
                continue
            account.rows += 1
            account.tokens += len(short.ids)
            account.trained_tokens += sum(short.loss)
            account.untrained_turns += short.untrained_turns
            account.forms[short.form] = account.forms.get(short.form, 0) + 1
            yield number, row, short


def _too_bad(error: ConfigError, allowed: int) -> ConfigError:
    if not allowed:
        return ConfigError(f"{error}; or leave out up to N such rows with data.skip_bad_rows=N")
    return ConfigError(
        f"more than data.skip_bad_rows={allowed} rows cannot be read; the last one: {error}"
    )


def _shortened(
    example: TokenRow, row: DataRow, reading: ReadRules, account: Account
) -> TokenRow | None:
    """Return an example that fits, None if it is left out. Raises ConfigError under too_long=error."""
    length, most = len(example.ids), reading.max_length
    if length <= most or (example.is_text and reading.is_windowed):
        return example
    place = f"{row.path}, {row.place}"
    if reading.too_long == "error":
        raise row.error(
            f" has {length} tokens, but max_length is {most}; shorten it, raise max_length, or set "
            f"data.too_long to truncate or drop"
        )
    if reading.too_long == "drop":
        account.dropped += 1
        account.note("dropped", f"{place}: {length} tokens, max_length is {most}")
        return None
    if not any(example.loss[:most]):
        account.dropped += 1
        account.note(
            "dropped", f"{place}: its first {most} tokens (max_length) hold nothing to train"
        )
        return None
    account.truncated += 1
    account.cut_tokens += length - most
    account.note("truncated", f"{place}: {length} tokens, cut to {most}")
    return TokenRow(
        example.form,
        example.ids[:most],
        example.loss[:most],
        example.is_text,
        example.untrained_turns,
    )


def is_held_out(ids: list[int], fraction: float) -> bool:
    """Return True for the share of rows, chosen by their content, that is held out."""
    if fraction <= 0:
        return False
    digest = hashlib.blake2b(np.array(ids, np.uint32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def build_store(
    sources: list[RowSource], encoder: RowEncoder, reading: ReadRules, parent: Path
) -> TokenStore:
    """Return the store of these rows below `parent`; it is written unless it is there already.

    Raises ConfigError for rows that cannot be read, and when no row is left to train.
    """
    folder = parent / _name(sources, encoder, reading)
    if (folder / ACCOUNT).is_file():
        return TokenStore(folder)
    account = Account()
    sizes = [0] * len(sources)
    parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as partial:
        with ExitStack() as stack:
            ids, loss, ends, flags = (
                stack.enter_context((partial / name).open("wb"))
                for name in ("ids.bin", "loss.bin", "ends.bin", "flags.bin")
            )
            end = 0
            for number, _, example in examples(sources, encoder, reading, account):
                end += len(example.ids)
                is_out = is_held_out(example.ids, reading.eval_fraction)
                account.held_out += is_out
                sizes[number] += 1
                ids.write(np.array(example.ids, np.uint32).tobytes())
                loss.write(np.array(example.loss, np.bool_).tobytes())
                ends.write(np.int64(end).tobytes())
                flags.write(bytes([TEXT * example.is_text | HELD_OUT * is_out]))
        check_account(account, reading)
        content = {"account": asdict(account), "sizes": sizes}
        (partial / ACCOUNT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return TokenStore(folder)


def check_account(account: Account, reading: ReadRules) -> None:
    """Raise ConfigError when no row is left to train, or none is held out although some should be."""
    if account.rows - account.held_out < 1:
        reasons = "; ".join(text for texts in account.notes.values() for text in texts[:1])
        raise ConfigError(
            f"no row is left to train ({account.bad} bad, {account.dropped} dropped, {account.held_out} "
            f"held out){': ' + reasons if reasons else ''}; give more rows, or raise max_length"
        )
    if reading.eval_fraction and not account.held_out:
        raise ConfigError(
            f"data.eval_fraction={reading.eval_fraction} holds out none of {account.rows} rows; raise it, "
            f"or give a file with data.eval"
        )


def _name(sources: list[RowSource], encoder: RowEncoder, reading: ReadRules) -> str:
    """Return the name of the store: a hash of everything that changes its content."""
    parts: list[object] = [VERSION, [source.digest() for source in sources], asdict(reading)]
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    parts += ["" if backend is None else backend.to_str(), encoder.form]
    has_tokenizer = encoder.tokenizer is not None
    parts += [encoder.prompts.chat.template() if has_tokenizer else None]
    parts += [encoder.spec.mask_id, encoder.spec.eos_id, encoder.spec.vocab_size]
    parts += [] if encoder.needs_answer else ["prompts"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
