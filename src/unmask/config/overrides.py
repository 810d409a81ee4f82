"""Parser of overrides in Hydra's grammar.

`a.b=v` and `+a.b=v` set a key (the schema defines the keys, so `+` has no effect), `~a.b` deletes the value
of a preset, `group=name` chooses a preset. An override with several values (`a=1,2`, `range(1,4)`) is a
sweep.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.config.schema import CHOICES, canonical
from unmask.errors import ConfigError, ContradictionError

if TYPE_CHECKING:
    from hydra.core.override_parser import types

COMMAND_LINE = "command line"
TEXTS = (
    "output",
    "device",
    "model.name",
    "model.path",
    "dataset.name",
    "dataset.path",
    "dataset.system_prompt",
    "dataset.prompt",
    "dataset.target",
    "dataset.metric",
    "dataset.shots",
    "dataset.stop",
)


@dataclass(frozen=True)
class Override:
    """A parsed override. `text`: the value in Hydra's grammar; `typed_key`: the key before aliases."""

    key: str
    value: object
    text: str
    typed_key: str
    layer: str
    is_deletion: bool = False

    @property
    def is_choice(self) -> bool:
        """True if it chooses a preset."""
        return self.key in CHOICES

    def for_hydra(self) -> str:
        """Return the override for Hydra, with `++` since the schema has checked the key."""
        if self.is_deletion:
            return f"~{self.key}"
        return f"{self.key}={self.text}" if self.is_choice else f"++{self.key}={self.text}"


def parse(texts: Sequence[str], layer: str = COMMAND_LINE) -> list[Override]:
    """Parse overrides in order. Raises ConfigError for errors of grammar and for sweeps."""
    overrides = []
    for text in texts:
        item = _parse(text)
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
        overrides.append(
            Override(
                key=canonical(name),
                value=None if item.is_delete() else item.value(),
                text="" if item.is_delete() else _value_text(canonical(name), text, item),
                typed_key=name,
                layer=layer,
                is_deletion=item.is_delete(),
            )
        )
    return _without_repeats(overrides)


def _value_text(name: str, text: str, item: types.Override) -> str:
    """Return a value for Hydra; numbers as values of text keys (a folder called 2026) are quoted."""
    if name in TEXTS and isinstance(item.value(), (int, float)):
        return _spell(text.partition("=")[2])
    # a dollar before a field of a template, "${{price}}", is no interpolation, and cannot be one
    return re.sub(r"(?<!\\)\$(?=\{\{)", r"\\$", str(item.get_value_element_as_str()))


def _parse(text: str) -> types.Override:
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


def _without_repeats(overrides: Iterable[Override]) -> list[Override]:
    """Drop repetitions. Raises ConfigError for a key with two values."""
    by_key: dict[str, Override] = {}
    for override in overrides:
        first = by_key.setdefault(override.key, override)
        if (first.value, first.is_deletion) != (override.value, override.is_deletion):
            texts = (f"{item.typed_key}={item.text}" for item in (first, override))
            raise ContradictionError(override.key, *texts)
    return list(by_key.values())


def from_tree(tree: object, layer: str) -> list[Override]:
    """Return the overrides of a config file: leaves as keys, the bare name of a group as its preset."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{layer} must hold keys and values")
    texts = [f"{name}={_spell(value)}" for name, value in leaves(tree)]
    return parse(texts, layer)


def leaves(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Return the values of a nested mapping with their dotted keys.

    A mapping by numbers is a value, as a list of pairs.
    """
    pairs: list[tuple[str, object]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value and all(str(key).isdecimal() for key in value):
            pairs.append((f"{prefix}{name}", [list(pair) for pair in value.items()]))
        elif isinstance(value, Mapping):
            pairs += leaves(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _spell(value: object) -> str:
    """Format a value in Hydra's grammar."""
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
    """Return all combinations of the values of sweeps; those of the last override change fastest."""
    choices = []
    for text in texts:
        item = _parse(text)
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
