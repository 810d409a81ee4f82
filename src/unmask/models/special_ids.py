"""Special token ids by role (end, mask, padding, begin), gathered from all files of a checkpoint folder.

Real folders name them in `config.json`, `generation_config.json`, `tokenizer_config.json`,
`special_tokens_map.json`, `added_tokens.json` and `tokenizer.json`, which do not always agree. `gather`
reads all of them; `config.json` takes precedence, every end ends, and its notes list what disagrees or is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from unmask.errors import ModelError
from unmask.models.folder_files import read_object, shortened
from unmask.models.hf_config import Config
from unmask.models.spec import ModelSpec

MAX_ENDS = 1024
"""Maximum number of ids in a list of end ids."""
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
NESTED_ROLES = ("extra_special_tokens", "model_specific_special_tokens")
"""Keys of `tokenizer_config.json` that hold further roles with the texts of their tokens."""
ROLES = ("bos", "eos", "pad", "mask")
MASK_TEXTS = (
    "<|mdm_mask|>",
    "<|mask|>",
    "<mask>",
    "[MASK]",
    "<|MASK|>",
    "|<MASK>|",
    "<MASK>",
    "<|mask_token|>",
)
"""Texts of mask tokens in released tokenizers, for one without the role `mask_token`."""
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of a checkpoint by role; None where no file has one, so that the family's default holds.

    `eos_id` is the first of `end_ids`, all tokens that end an answer but for the family's end of a turn.
    `notes` are sentences on values that disagree or are left out; `minor_notes` those on padding and begin,
    which decoding does not use.
    """

    mask_id: int | None
    end_ids: Ids
    pad_id: int | None
    bos_id: int | None
    notes: tuple[str, ...] = ()
    minor_notes: tuple[str, ...] = ()

    @property
    def eos_id(self) -> int | None:
        """The first end id."""
        return next(iter(self.end_ids), None)

    def apply(self, config: Config) -> Config:
        """Return a config in which each role has one id, or none."""
        ids = {"mask": self.mask_id, "eos": self.eos_id, "pad": self.pad_id}
        kept = {key: value for key, value in config.items() if key not in ID_KEYS}
        found = {f"{role}_token_id": id_ for role, id_ in ids.items() if id_ is not None}
        return {**kept, **found}


ID_KEYS = frozenset(f"{role}_token_id" for role in ROLES)


class FolderTokens:
    """Texts and ids of a checkpoint's tokens, from its files, which are read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects: dict[str, Config] = {}

    def _object(self, name: str) -> Config:
        """Return the content of a file, which is read once; empty if there is none."""
        if name not in self._objects:
            path = self.folder / name
            self._objects[name] = read_object(path) if path.exists() else {}
        return self._objects[name]

    @cached_property
    def _declared(self) -> dict[str, int]:
        """The added tokens of `tokenizer_config.json` and `added_tokens.json`."""
        pairs = (_added(self._object(name)) for name in (TOKENIZER_CONFIG, "added_tokens.json"))
        return {text: id_ for id_, text in chain.from_iterable(pairs)}

    @cached_property
    def _whole(self) -> dict[str, int]:
        """All tokens, the vocabulary's included; `tokenizer.json` is what the tokenizer is made of."""
        content = self._object("tokenizer.json")
        if not content:
            return dict(_entries(self._object("vocab.json"))) | self._declared
        own = dict(_vocabulary(content)) | {text: id_ for id_, text in _added(content)}
        return self._declared | own

    def id_of(self, text: str) -> int | None:
        """Return the id of a token by its text; None if no file has it. Raises ModelError."""
        return self._whole.get(text)

    def disagreement(self, text: str) -> str | None:
        """Return a sentence on a token to which other files give another id than the tokenizer does."""
        id_, other = self._whole.get(text), self._declared.get(text)
        if other in (None, id_):
            return None
        return f"the tokenizer has {shortened(text, 40)!r} at {id_}, which is used; another file at {other}"

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {id_: text for text, id_ in self._whole.items()}

    def text_of(self, id_: int) -> str | None:
        """Return the text of a token by its id; None if no file has it. Raises ModelError."""
        return self._texts.get(id_)

    @property
    def exist(self) -> bool:
        """True for a folder with a tokenizer."""
        return bool(self._whole)

    def role(self, role: str) -> tuple[str, str] | None:
        """Return the text of a role's token and the file that names it; None if no file does."""
        for name in (TOKENIZER_CONFIG, TOKENS_MAP):
            if (text := self.role_in(name, role)) is not None:
                return text, name
        return None

    def role_in(self, name: str, role: str) -> str | None:
        """Return the text of a role's token in one file; None if it names none."""
        content = self._object(name)
        value = content.get(f"{role}_token")
        for key in NESTED_ROLES:
            nested = content.get(key)
            if value is None and isinstance(nested, Mapping):
                value = nested.get(f"{role}_token")
        if isinstance(value, Mapping):  # an added token with its properties
            value = value.get("content")
        return value if isinstance(value, str) and value else None


def _added(content: Config) -> Iterator[tuple[int, str]]:
    """Yield the ids and texts of added tokens, in the form of any of the three files."""
    yield from ((id_, text) for text, id_ in _entries(content))
    decoder, tokens = content.get("added_tokens_decoder"), content.get("added_tokens")
    if isinstance(decoder, dict):
        for key, item in decoder.items():
            if str(key).isdecimal() and len(str(key)) < 20 and isinstance(item, dict):
                yield int(key), str(item.get("content"))
    if isinstance(tokens, list):
        for item in tokens:
            if isinstance(item, dict) and _is_whole(item.get("id")):
                yield int(item["id"]), str(item.get("content"))


def _entries(content: object) -> Iterator[tuple[str, int]]:
    """Yield the pairs of a mapping from texts to ids."""
    if isinstance(content, dict):
        yield from ((text, id_) for text, id_ in content.items() if _is_whole(id_))


def _vocabulary(content: Config) -> Iterator[tuple[str, int]]:
    """Yield the texts and ids of the vocabulary in a `tokenizer.json`, of any kind of model."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: pairs of text and score, in order
        for id_, item in enumerate(vocab):
            if isinstance(item, list) and item and isinstance(item[0], str):
                yield item[0], id_
    yield from _entries(vocab)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(config: Config, file: str, role: str) -> Ids:
    """Return a role's ids in a config: none for null, -1 and empty lists. Raises ModelError.

    Only ends may be several. A whole number may be written as a float, e.g. 126081.0.
    """
    key = f"{role}_token_id"
    value = config.get(key)
    several = "a whole number or a list of them" if role == "eos" else "a whole number"
    items = value if isinstance(value, list) else [value]
    problem = f"{file}: {key}={shortened(repr(value), 200)} must be {several}, at least 0"
    if len(items) > MAX_ENDS or (role != "eos" and len(items) > 1):
        raise ModelError(f"{problem}; correct it")
    ids: list[int] = []
    for item in items:
        if item is None or item == -1:
            continue
        whole = int(item) if isinstance(item, float) and item.is_integer() else item
        if not isinstance(whole, int) or isinstance(whole, bool) or whole < 0:
            raise ModelError(f"{problem}; -1 or null mean none")
        ids.append(whole)
    return tuple(dict.fromkeys(ids))


class _Gathering:
    """One reading of a folder: candidates of each role by file, and the notes on them."""

    def __init__(self, config: Config, tokens: FolderTokens, num_rows: int) -> None:
        self.tokens, self.num_rows = tokens, num_rows
        path = tokens.folder / GENERATION
        generation = read_object(path) if path.exists() else {}
        self.configs = {CONFIG: config, GENERATION: generation}
        self.notes: list[str] = []

    def candidates(self, role: str) -> dict[str, Ids]:
        """Return a role's ids by file, without those that no row of the embedding has."""
        found = {name: _ids(config, name, role) for name, config in self.configs.items()}
        for name in (TOKENIZER_CONFIG, TOKENS_MAP):
            text = self.tokens.role_in(name, role)
            if text is None:
                continue
            id_ = self.tokens.id_of(text)
            found[name] = () if id_ is None else (id_,)
            if (sentence := self.tokens.disagreement(text)) and sentence not in self.notes:
                self.notes.append(sentence)
            if id_ is None and role != "pad":
                self.notes.append(f"{name}: {role}_token={shortened(text)!r} is no token; left out")
        return {
            name: kept for name, ids in found.items() if (kept := self._inside(name, role, ids))
        }

    def _inside(self, name: str, role: str, ids: Ids) -> Ids:
        outside = [id_ for id_ in ids if id_ >= self.num_rows]
        if outside:
            listed = shortened(", ".join(map(str, outside)))
            self.notes.append(
                f"{name}: {role}_token_id={listed} is outside the {self.num_rows} rows of the vocabulary; "
                f"left out"
            )
        return tuple(id_ for id_ in ids if id_ < self.num_rows)

    def one(self, role: str) -> int | None:
        """Return the id of a role that has one: the config's takes precedence. Note what disagrees."""
        found = self.candidates(role)
        if not found:
            return None
        source, (chosen, *_) = next(iter(found.items()))
        others = {name: ids[0] for name, ids in found.items() if ids[0] != chosen}
        if others:
            self.notes.append(
                f"{source}: {role}_token_id={self.named(chosen)} is used; "
                + ", ".join(f"{name} has {self.named(id_)}" for name, id_ in others.items())
            )
        return chosen

    def named(self, id_: int) -> str:
        """Return an id with its token's text, for a note."""
        text = self.tokens.text_of(id_)
        return str(id_) if text is None else f"{id_} ({shortened(text, 40)})"

    def ends(self, mask_id: int | None, turn_end: int | None) -> Ids:
        """Return the end ids of all files, the config's first.

        Files of which neither has all ends of the other are noted; so is the mask among the ends.
        """
        found = self.candidates("eos")
        if mask_id is not None and any(mask_id in ids for ids in found.values()):
            files = [name for name, ids in found.items() if mask_id in ids]
            self.notes.append(
                f"{', '.join(files)}: the end token {mask_id} is the mask, which ends nothing; left out"
            )
            found = {
                name: tuple(id_ for id_ in ids if id_ != mask_id) for name, ids in found.items()
            }
            found = {name: ids for name, ids in found.items() if ids}
        if not found:
            return ()
        first, own = next(iter(found.items()))
        for name, ids in found.items():
            here, there = set(own) - {turn_end}, set(ids) - {turn_end}
            if not (here <= there or there <= here):
                self.notes.append(
                    f"{first} has the end tokens {', '.join(map(self.named, own))}, {name} "
                    f"{', '.join(map(self.named, ids))}: all of them end an answer"
                )
        return tuple(dict.fromkeys(chain.from_iterable(found.values())))

    def mask(self, text: str, default: int) -> int | None:
        """Return the mask's id: of its role, of the family's `text`, or of the one well-known text.

        None: the family's `default`, which must not be another token. Raises ModelError.
        """
        num_notes = len(self.notes)
        if (found := self.one("mask")) is not None:
            own = self._known(text) if text else None
            if own not in (None, found) and len(self.notes) == num_notes:
                self.notes.append(
                    f"the mask token is {self.named(found)}, although the tokenizer has the family's, "
                    f"{self.named(int(own or 0))}"
                )
            return found
        known = [self._known(each) for each in dict.fromkeys((text, *MASK_TEXTS)) if each]
        ids = [id_ for id_ in known if id_ is not None]
        if ids and (known[0] is not None or len(set(ids)) == 1):
            return ids[0]
        advice = "set mask_token_id in config.json"
        if len(self.notes) > num_notes:
            raise ModelError(
                f"{'; '.join(self.notes[num_notes:])}, and no file has a mask; {advice}"
            )
        if not self.tokens.exist:
            return None
        if ids:
            several = ", ".join(map(self.named, ids))
            raise ModelError(f"the tokenizer has several mask tokens, {several}; {advice}")
        if default >= self.num_rows:
            raise ModelError(
                f"no file names the mask token, and the family's default, {default}, is outside the "
                f"{self.num_rows} rows of the vocabulary; {advice}"
            )
        word = self.tokens.text_of(default)
        if word is not None:
            raise ModelError(
                f"no file names the mask token, and the family's default, {default}, is the token "
                f"{shortened(word, 40)!r}; {advice}"
            )
        self.notes.append(
            f"no file names the mask token; the family's default, {default}, is used, which is no token "
            f"of the tokenizer"
        )
        return None

    def _known(self, text: str) -> int | None:
        id_ = self.tokens.id_of(text)
        if id_ is None or id_ >= self.num_rows:
            return None
        if (sentence := self.tokens.disagreement(text)) and sentence not in self.notes:
            self.notes.append(sentence)
        return id_


def gather(config: Config, tokens: FolderTokens, mask_text: str, spec: ModelSpec) -> SpecialIds:
    """Return the special ids of a folder with these tokens. Raises ModelError for values that are no ids.

    `mask_text` is the family's text of the mask; `spec` has the vocabulary's rows, the family's end of a
    turn, and its default ids.
    """
    reading = _Gathering(config, tokens, spec.vocab_size)
    mask_id = reading.mask(mask_text, spec.mask_id)
    turn_end = None if spec.turn_end is None else tokens.id_of(spec.turn_end)
    mask = spec.mask_id if mask_id is None else mask_id
    ends = reading.ends(mask, turn_end)
    if not ends and turn_end is None and spec.eos_id >= spec.vocab_size and tokens.exist:
        reading.notes.append(
            f"no file names an end token, and the family's default, {spec.eos_id}, is outside the "
            f"{spec.vocab_size} rows of the vocabulary: no answer ends early"
        )
    notes, reading.notes = tuple(reading.notes), []
    if not ends and spec.eos_id < spec.vocab_size:
        reading.notes.append(
            f"no file names an end token; the family's default, {reading.named(spec.eos_id)}, is used"
        )
    pad_id, bos_id = reading.one("pad"), reading.one("bos")
    return SpecialIds(
        mask_id=mask_id,
        end_ids=ends,
        pad_id=pad_id,
        bos_id=bos_id,
        notes=notes,
        minor_notes=tuple(reading.notes),
    )
