"""`key=value` words in Hydra's grammar: what each sets, by which layer it was said.

`a.b=v` and `+a.b=v` set a key (which keys there are is the schema's to say, so `+` adds nothing), `~a.b`
takes back what a preset says, `group=name` chooses a preset. A word that lists several values (`a=1,2`,
`range(1,4)`) is a sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.config.schema import CHOICES, canonical
from unmask.errors import ConfigError

COMMAND_LINE = "command line"
TEXTS = (
    "output",
    "device",
    "model.name",
    "model.path",
    "dataset.name",
    "dataset.path",
    "dataset.system_prompt",
)


@dataclass(frozen=True)
class Word:
    """One parsed word. `written` is the value as it was typed; `said` is the key as it was."""

    key: str
    value: Any
    written: str
    said: str
    layer: str
    is_deletion: bool = False

    @property
    def is_choice(self) -> bool:
        """Whether it chooses a preset."""
        return self.key in CHOICES

    def override(self) -> str:
        """The word for Hydra: keys are checked by the schema, so every one may be new."""
        if self.is_deletion:
            return f"~{self.key}"
        return f"{self.key}={self.written}" if self.is_choice else f"++{self.key}={self.written}"


def parse(texts: Sequence[str], layer: str = COMMAND_LINE) -> list[Word]:
    """Words in order. Raises ConfigError for what Hydra's grammar does not allow, and for sweeps."""
    words = []
    for text in texts:
        item = _override(text)
        if item.is_sweep_override():
            raise ConfigError(
                f"{text!r} lists several values; add -m to run each, or quote the value: "
                f"{text.partition('=')[0]}=[1,2] is a list"
            )
        name = item.key_or_group
        if name == "hydra" or name.startswith("hydra.") or name.startswith("hydra/"):
            raise ConfigError(
                f"{text!r}: Hydra only reads the words here, it runs nothing; use output=FOLDER, "
                f"--config-dir, --cfg job and -m"
            )
        if item.package is not None:
            raise ConfigError(f"{text!r}: a preset cannot be moved to another package")
        words.append(
            Word(
                key=canonical(name),
                value=None if item.is_delete() else item.value(),
                written="" if item.is_delete() else _written(canonical(name), text, item),
                said=name,
                layer=layer,
                is_deletion=item.is_delete(),
            )
        )
    return _without_repeats(words)


def _written(name: str, text: str, item: Any) -> str:
    """A value for Hydra; numbers that stand where a text belongs (a folder called 2026) are quoted."""
    if name in TEXTS and isinstance(item.value(), (int, float)):
        return _spell(text.partition("=")[2])
    return str(item.get_value_element_as_str())


def _override(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.lstrip("+~")[:1] in ("", "=", "-"):
        raise ConfigError(f"{text!r} is not of the form key=value")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{text!r} cannot be read ({reason}); write key=value, with quotes around a value that holds "
            f"commas, spaces or brackets"
        ) from None


def _without_repeats(words: Iterable[Word]) -> list[Word]:
    """Every key once. Raises ConfigError when it is there with two values."""
    found: dict[str, Word] = {}
    for word in words:
        before = found.setdefault(word.key, word)
        if (before.value, before.is_deletion) != (word.value, word.is_deletion):
            raise ConfigError(
                f"{before.said}={before.written} and {word.said}={word.written} contradict; give one "
                f"of them"
            )
    return list(found.values())


def from_tree(tree: Any, layer: str) -> list[Word]:
    """The words of a config file's tree: leaves as keys, a bare name of a group as its preset."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{layer} must hold keys and values")
    texts = [f"{name}={_spell(value)}" for name, value in leaves(tree)]
    return parse(texts, layer)


def leaves(tree: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested dict under dotted keys."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found += leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, dict):
            found.append((f"{prefix}{name}", value))
    return found


def _spell(value: Any) -> str:
    """A value as Hydra's grammar writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_spell, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


def sweep(texts: Sequence[str]) -> list[list[str]]:
    """All combinations of words that list several values, the last word's values changing fastest."""
    choices = []
    for text in texts:
        item = _override(text)
        name = text.partition("=")[0]
        if item.is_sweep_override():
            from hydra.errors import HydraException

            try:
                values = list(item.sweep_string_iterator())
            except HydraException as error:
                raise ConfigError(f"{text!r} cannot be swept over: {error}") from None
            choices.append([f"{name}={value}" for value in values])
        else:
            choices.append([text])
    return [list(combination) for combination in itertools.product(*choices)]
