"""Tasks of users from files of rows: a prompt of each row, and what makes an answer to it right.

A row without the fields that prompt, target or choices name is refused with file and line.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from unmask.data.fields import CHOICES, PROMPTS, TARGETS
from unmask.data.own_metrics import CHOICE, Metric, metric_of
from unmask.data.records import SUFFIXES, DataRow, read_rows, shown
from unmask.errors import ConfigError, cut_text

if TYPE_CHECKING:
    from jinja2 import Template


GEN_LENGTH = 256
"""Default number of positions of an answer."""


@dataclass(frozen=True)
class RowDocument:
    """A row with its prompt and target; `choices` and the index `right` of one are for metric choice."""

    row: DataRow
    prompt: str
    target: str
    choices: tuple[str, ...] = ()
    right: int = 0


@dataclass(frozen=True)
class RowTask:
    """A task of rows. `prompt`, `target`: templates such as "{{question}}"; None: the fields' usual names.

    `metric` None: rows have prompts alone, and no answer is right or wrong.
    """

    path: Path
    prompt: str | None = None
    target: str | None = None
    metric: str | None = None

    @property
    def name(self) -> str:
        """Name of the task in tables: that of the file."""
        return name_of(self.path)

    def check(self) -> None:
        """Raise ConfigError for a file that is not there, a template, or a metric that cannot be used."""
        if not self.path.is_file():
            raise ConfigError(
                f"task={str(self.path)!r} is no file; give a file of rows ({', '.join(SUFFIXES)}), or the "
                f"name of a task"
            )
        for name, text in (("prompt", self.prompt), ("target", self.target)):
            if text is not None:
                _Template(name, text)
        if self.metric is not None:
            metric_of(self.metric)

    def documents(self, path: Path | None = None) -> list[RowDocument]:
        """Return the documents of the file, or of another file of the same form, such as examples.

        Raises ConfigError with file and line for a row that cannot be asked or judged.
        """
        metric = None if self.metric is None else metric_of(self.metric)
        found = [self._document(row, metric) for row in read_rows(path or self.path)]
        if metric is not None and not metric.needs_target:
            metric.score("", found[0].target, found[0].row.values)  # before hours of generation
        return found

    def score(self, document: RowDocument, answer: str) -> float:
        """Return the score of an answer, 1 for a right one. Raises PluginError from a user's function."""
        assert self.metric is not None, "rows without a metric are not judged"
        return metric_of(self.metric).score(answer, document.target, document.row.values)

    def _document(self, row: DataRow, metric: Metric | None) -> RowDocument:
        prompt = _rendered(row, "prompt", self.prompt, PROMPTS)
        if self.prompt is None and row.has("input"):
            prompt = f"{prompt}\n\n{row.text('input', may_be_empty=True)}".strip()
        if metric is None:
            return RowDocument(row, prompt, "")
        if not metric.needs_target:  # a function of the user's, which sees all fields
            for name in row.values:
                row.check_single(name)
        if self.metric == CHOICE:
            return self._choice(row, prompt)
        if not metric.needs_target and self.target is None and not row.has(*TARGETS):
            return RowDocument(row, prompt, "")
        target = _rendered(row, "target", self.target, TARGETS)
        if not metric.is_target(target):
            raise row.error(
                f": target={shown(target)} must be {metric.form} for metric={self.metric}"
            )
        return RowDocument(row, prompt, target)

    def _choice(self, row: DataRow, prompt: str) -> RowDocument:
        choices = _choices(row)
        if self.target is None:
            name, value = row.field(*TARGETS)
        else:
            name, value = "target", _rendered(row, "target", self.target, ())
        right = _index(value, choices)
        if right is None:
            raise row.error(
                f": {name}={shown(value)} must be the text of one of its {len(choices)} choices, or its "
                f"number from 0, or its letter"
            )
        return RowDocument(row, prompt, choices[right], tuple(choices), right)


def name_of(path: Path) -> str:
    """Return the name of a task file without its endings."""
    for suffix in (*SUFFIXES, ".yaml", ".yml"):
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    return path.name


def _choices(row: DataRow) -> list[str]:
    """Return the choices: a list, or the fields A, B, ... Raises ConfigError for fewer than two."""
    if row.has("A") and not row.has(*CHOICES):
        letters: Iterable[str] = (letter for letter in ascii_uppercase if row.has(letter))
        choices = [_text(row, letter) for letter in letters]
    else:
        choices = row.texts(*CHOICES)
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise row.error(": choices must be at least two texts, all of them different")
    return choices


def _index(value: object, choices: list[str]) -> int | None:
    """Return the index of the right choice, given as its text, number from 0 or letter; None if none is."""
    if isinstance(value, str):
        text = value.strip()
        for number, choice in enumerate(choices):
            if choice.strip() == text:
                return number
        if len(text) == 1 and text.upper() in ascii_uppercase[: len(choices)]:
            return ascii_uppercase.index(text.upper())
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices)
    return value if is_index and isinstance(value, int) else None


def _text(row: DataRow, *names: str) -> str:
    """Return a field that is text or a number, as text. Raises ConfigError."""
    name, value = row.field(*names)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return row.text(name)


def _rendered(row: DataRow, name: str, template: str | None, names: tuple[str, ...]) -> str:
    """Return a template filled in from a row, or the first of the fields. Raises ConfigError."""
    if template is None:
        return _text(row, *names)
    return _template(name, template)(row)


class _Template:
    """A template of fields, `{{question}}`, filled in by jinja2 in its sandbox."""

    def __init__(self, name: str, text: str) -> None:
        from jinja2 import StrictUndefined, TemplateError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.name = name
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True
        )
        try:
            self.fields = sorted(meta.find_undeclared_variables(environment.parse(text)))
            self.template: Template = environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(
                f"{name}={cut_text(text)!r} cannot be read ({error}); write the names of fields in double "
                f"braces, such as '{{{{question}}}}'"
            ) from None
        self.fields = [field for field in self.fields if field not in environment.globals]
        if not self.fields:
            raise ConfigError(
                f"{name}={cut_text(text)!r} names no field, so all rows would have the same {name}; write "
                f"names of fields in double braces, such as '{{{{question}}}}'"
            )

    def __call__(self, row: DataRow) -> str:
        """Return the text for a row. Raises ConfigError for a field that is not there or null."""
        from jinja2 import TemplateError

        values = {field: row.field(field)[1] for field in self.fields}
        try:
            text = self.template.render(values)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise row.error(f": {self.name} cannot be filled in: {cut_text(str(error))}") from None
        return DataRow(row.path, row.place, {self.name: text}).text(self.name)


@functools.lru_cache(maxsize=32)
def _template(name: str, text: str) -> _Template:
    return _Template(name, text)


def lead_of(template: str | None) -> str:
    """Return the text of a template before its first field, without white space at its ends."""
    return "" if template is None else template.partition("{")[0].strip()
