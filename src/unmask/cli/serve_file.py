"""`unmask serve --config FILE`: options in YAML, under what is typed.

    model: /srv/unmask/model
    decoder: threshold
    knobs: {threshold: 0.9}
    max-num-seqs: 16

A key is an option's long name, with - or _. The file's lines are put before the typed arguments, so one
parser sees both, and a line whose option is typed is left out.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from unmask.cli.help import DecodeCommand
from unmask.cli.key_value import WORD
from unmask.errors import ConfigError, unknown_name

KNOBS = "knobs"
NOT_IN_FILES = ("config", "help")
SECRET = "api_key"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class Given(NamedTuple):
    """What was typed: the file, the names of the parameters, and whether a model is among them."""

    file: Path
    parameters: set[str]
    has_model: bool

    def has(self, parameter: str) -> bool:
        """Whether a parameter was typed, so that the file's is left out."""
        return parameter in self.parameters or (parameter == "model" and self.has_model)


class ServeCommand(DecodeCommand):
    """A command whose options may stand in a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the file's lines and what was typed as one. Raises ConfigError for a wrong file."""
        given = self._given(ctx, list(args))
        if given is None:
            return super().parse_args(ctx, args)
        words, keys = self._lines(given)
        try:
            return super().parse_args(ctx, [*words, *args])
        except typer.BadParameter as error:
            key = keys.get(str(getattr(error.param, "name", "")))
            if key is None:
                raise
            raise _wrong(given.file, key, error.message.rstrip(".")) from None

    def _given(self, ctx: Any, args: list[str]) -> Given | None:
        """What was typed, or None when no file is to be read."""
        options, _, _ = self.make_parser(ctx).parse_args(args)
        if options.get("help") is True or not isinstance(options.get("config"), str):
            return None
        words = options.get("words")
        texts = words if isinstance(words, Sequence) else ()
        has_word = any(WORD.fullmatch(text) is None for text in texts)
        return Given(Path(options["config"]), set(options), "model" in options or has_word)

    def _lines(self, given: Given) -> tuple[list[str], dict[str, str]]:
        """The file as arguments, and the key that said each parameter."""
        file = given.file
        hints = typing.get_type_hints(self.callback)
        known = {_long_name(item): item for item in self.params}
        words: list[str] = []
        keys: dict[str, str] = {}
        for key, value in read(file).items():
            name = canonical(self.params, key, file)
            if name == KNOBS:
                words += knob_words(value, file)
                continue
            item = known[name]
            if item.name in keys:
                raise _wrong(file, key, f"is the same option as {keys[item.name]}; leave one out")
            keys[item.name] = key
            texts = typed(value, hints[item.name], file, key)
            if not given.has(item.name):
                words += arguments(item, texts)
        return words, keys


def read(file: Path) -> dict[str, Any]:
    """The file's lines. Raises ConfigError when it cannot be read, is no mapping, or repeats a key."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--config {file} cannot be read: {reason}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"--config {file} must hold lines of the form option: value")
    keys = [key.value for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise _wrong(file, key, "stands there twice; leave one out")
    return {str(key): value for key, value in found.items()}


def canonical(parameters: Sequence[Any], key: str, file: Path) -> str:
    """The first long name of the option that a key names. Raises ConfigError, with the nearest."""
    name = key.replace("_", "-")
    names = {KNOBS: KNOBS}
    for item in parameters:
        longs = [option[2:] for option in item.opts if option.startswith("--")]
        if _long_name(item) not in NOT_IN_FILES:
            names.update(dict.fromkeys(longs, _long_name(item)))
    if name in names:
        return names[name]
    if name in NOT_IN_FILES:
        raise _wrong(file, key, "belongs on the command line; leave it out")
    error = unknown_name("option", key, names)
    raise ConfigError(f"--config {file}: {error}")


def typed(value: Any, hint: Any, file: Path, key: str) -> list[str]:
    """A value as the texts that would be typed. Raises ConfigError when its type is not the option's."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    kind = kinds[0]
    if typing.get_origin(kind) is list:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _wrong(file, key, "is an empty list; leave it out")
        return [text for one in values for text in typed(one, str, file, key)]
    wanted: type = str if kind is Path else kind
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        shown = "its value" if key.replace("-", "_") == SECRET else repr(value)
        advice = "; put it in quotes" if wanted is str and not isinstance(value, dict) else ""
        raise _wrong(file, key, f"must be {KINDS[wanted]}, {shown} is not{advice}")
    return [str(value).lower() if wanted is bool else str(value)]


def arguments(item: Any, texts: Sequence[str]) -> list[str]:
    """What would be typed for an option's values."""
    option = next(name for name in item.opts if name.startswith("--"))
    if not item.is_flag:
        return [f"{option}={text}" for text in texts]
    if texts[0] == "true":
        return [option]
    return list(item.secondary_opts[:1])


def knob_words(value: Any, file: Path) -> list[str]:
    """`key=value` words of the knobs. Raises ConfigError when they are no mapping."""
    import json

    if not isinstance(value, Mapping):
        raise _wrong(file, KNOBS, "must map knobs to values, as in {threshold: 0.9}")
    words = []
    for key, knob in value.items():
        text = knob if isinstance(knob, str) else json.dumps(knob, default=str)
        words.append(f"{key}={text}")
        if WORD.fullmatch(words[-1]) is None:
            raise _wrong(file, KNOBS, f"{key!r} is no knob's name")
    return words


def _long_name(item: Any) -> str:
    return next((name[2:] for name in item.opts if name.startswith("--")), str(item.name))


def _wrong(file: Path, key: str, problem: str) -> ConfigError:
    return ConfigError(f"--config {file}: {key}: {problem}")
