"""Sources of options besides the flags, and one-line errors of the command line.

The parser (`cyclopts`) fills each option from the flags; the functions here then add what a configuration
file (`serve --config FILE`) or a word (`generate seed=3`) holds.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from cyclopts import App, Token
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from unmask.cli.key_value import SPELLED, WORD
from unmask.errors import ConfigError, ContradictionError, unknown_name

if TYPE_CHECKING:
    from cyclopts.argument import Argument, ArgumentCollection

DASH = "\0-"
"""Stand-in for the argument `-`, which the parser would read as an option; no argument has a NUL."""
WORD_COMMANDS = ("generate", "infill", "chat")
"""Commands whose options can also be words."""
FLAGS_ONLY = ("as_json", "trace", "live", "fps", "base_url", "api_key", "system")
KNOBS, SECRET = "knobs", "api_key"
NOT_IN_FILES = ("config", "help")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def hide_dashes(arguments: Sequence[str]) -> list[str]:
    """Replace each argument `-` (standard input or output) by its stand-in."""
    return [DASH if text == "-" else text for text in arguments]


def restore_dashes(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Replace the stand-in of `-` in the values of all options."""
    for argument in arguments:
        argument.tokens[:] = [
            token.evolve(value="-") if token.value == DASH else token for token in argument.tokens
        ]


def refuse_fractions(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Raise ConfigError for a fraction as the value of a whole number, which the parser would round."""
    for argument in arguments:
        if int not in (argument.hint, *get_args(argument.hint)):
            continue
        for token in argument.tokens:
            try:
                is_whole = float(token.value).is_integer()
            except ValueError:
                continue  # the parser says what is wrong
            if not is_whole:
                raise ConfigError(f"{_shown(token)} must be a whole number")


# Words


def take_words(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Assign words `option=value` to their options, in `WORD_COMMANDS`.

    Other words are knobs and stay. Raises ConfigError for a flag and a word that differ.
    """
    if not commands or commands[0] not in WORD_COMMANDS:
        return
    words = next(item for item in arguments if item.field_info.name == "words")
    rest = []
    for index, token in enumerate(words.tokens):
        match = WORD.fullmatch(token.value)
        is_prompt = match is None or (index == 0 and re.search(r"\s", token.value))
        target = None if is_prompt or match is None else _option(arguments, match[1])
        if match is None or target is None or target.field_info.name in FLAGS_ONLY:
            rest.append(token)
            continue
        _add_word(target, match[1], match[2])
    words.tokens[:] = [token.evolve(index=index) for index, token in enumerate(rest)]


def _add_word(target: Argument, key: str, text: str) -> None:
    token = Token(keyword=key, value=text, source="word")
    if target.hint is bool:
        if text.lower() not in SPELLED:
            raise ConfigError(f"{key}={text!r} must be true or false")
        token = token.evolve(implicit_value=SPELLED[text.lower()])
    if not target.tokens:
        target.append(token)
        return
    first = target.tokens[0]
    if _plain(first) != _plain(token):
        raise ContradictionError(key, _shown(first), f"{key}={text}")


def _plain(token: Token) -> str:
    """Return a value for comparison: 01 is 1, yes is true."""
    if isinstance(token.implicit_value, bool):
        return str(token.implicit_value)
    return str(int(token.value)) if token.value.isdecimal() else token.value


def _shown(token: Token) -> str:
    """Return a value as it was written."""
    if token.source == "word":
        return f"{token.keyword}={token.value}"
    return f"{token.keyword} {token.value}".rstrip()


def _option(arguments: ArgumentCollection, key: str) -> Argument | None:
    """Return the option of a name, with - or _; its negative flag is no name of it."""
    name = f"--{key.replace('_', '-')}"
    return next((item for item in arguments if name in _names(item)), None)


def _names(argument: Argument) -> set[str]:
    """Return the names by which a word or a file sets an option."""
    if argument.parameter.parse is False:
        return set()
    return set(argument.names) - set(argument.negatives)


# A configuration file


def take_file(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Add the options of the file of `serve --config`; typed options take precedence.

        model: /srv/unmask/model
        decoder: threshold
        knobs: {threshold: 0.9}
        max-num-seqs: 16

    A key is the long name of an option, with - or _. Raises ConfigError for a file that cannot be read and
    for a key or a value that does not fit.
    """
    config = _option(arguments, "config")
    if tuple(commands) != ("serve",) or config is None or not config.tokens:
        return
    file = Path(config.tokens[-1].value)
    words = next(item for item in arguments if item.field_info.name == "words")
    typed = {item.name for item in arguments if item.tokens}
    if any(WORD.fullmatch(token.value) is None for token in words.tokens):
        typed.add("--model")
    keys: dict[str, str] = {}
    for key, value in read_file(file).items():
        if key == KNOBS:
            knobs = [Token(value=word, source=str(file)) for word in knob_words(value, file)]
            both = [*knobs, *words.tokens]
            words.tokens[:] = [token.evolve(index=index) for index, token in enumerate(both)]
            continue
        target = _named(arguments, key, file)
        if target.name in keys:
            raise _wrong(file, key, f"is the same option as {keys[target.name]}; leave one out")
        keys[target.name] = key
        tokens = list(_tokens(target, key, value, file))
        if target.name not in typed:
            for token in tokens:
                target.append(token)


def read_file(file: Path) -> dict[str, object]:
    """Return the lines of a file. Raises ConfigError when it is no mapping or repeats a key."""
    import yaml

    from unmask.yaml_text import parse_yaml

    try:
        text = file.read_text(encoding="utf-8")
        content = parse_yaml(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--config {file} cannot be read: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"--config {file} must hold lines of the form option: value")
    keys = [key.value for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise _wrong(file, key, "occurs twice; leave one out")
    return {str(key): value for key, value in content.items()}


def knob_words(value: object, file: Path) -> list[str]:
    """Return `key=value` words of the knobs. Raises ConfigError when they are no mapping."""
    if not isinstance(value, Mapping):
        raise _wrong(file, KNOBS, "must map knobs to values, as in {threshold: 0.9}")
    words = []
    for key, knob in value.items():
        text = knob if isinstance(knob, str) else json.dumps(knob, default=str)
        words.append(f"{key}={text}")
        if WORD.fullmatch(words[-1]) is None:
            raise _wrong(file, KNOBS, f"{key!r} is not the name of a knob")
    return words


def _named(arguments: ArgumentCollection, key: str, file: Path) -> Argument:
    """Return the option of a key. Raises ConfigError with the nearest name."""
    if key.replace("_", "-") in NOT_IN_FILES:
        raise _wrong(file, key, "belongs on the command line; leave it out")
    option = _option(arguments, key)
    if option is None:
        known = [name[2:] for item in arguments for name in _names(item) if name.startswith("--")]
        error = unknown_name("option", key, {KNOBS, *known} - {*NOT_IN_FILES})
        raise ConfigError(f"--config {file}: {error}")
    return option


def _tokens(target: Argument, key: str, value: object, file: Path) -> Iterator[Token]:
    """Yield a value as tokens of the parser. Raises ConfigError if its type is not that of the option."""
    is_choice = get_origin(target.hint) is Literal
    options = (str,) if is_choice else get_args(target.hint) or (target.hint,)
    hints = [hint for hint in options if hint is not type(None)]
    if get_origin(target.hint) is tuple:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _wrong(file, key, "is an empty list; leave it out")
        hints = [str]
    else:
        values = [value]
    kind: type = str if hints[0] is Path else hints[0]
    for index, one in enumerate(values):
        fits = isinstance(one, (int, float) if kind is float else kind)
        if not fits or (isinstance(one, bool) and kind is not bool):
            shown = "its value" if key.replace("-", "_") == SECRET else repr(one)
            advice = "; put it in quotes" if kind is str and not isinstance(one, dict) else ""
            raise _wrong(file, key, f"must be {KINDS[kind]}, {shown} is not{advice}")
        token = Token(keyword=key, value=str(one), source=str(file), index=index)
        yield token.evolve(implicit_value=one) if kind is bool else token


def _wrong(file: str | Path, key: str, problem: str) -> ConfigError:
    return ConfigError(f"--config {file}: {key}: {problem}")


# Errors


def message_of(error: CycloptsError, arguments: Sequence[str]) -> str:
    """Return the error of a command line as one sentence that refers to the help."""
    chain = " ".join(["unmask", *(error.command_chain or ())])
    return f"{_problem(error, arguments)}; see {chain} --help"


def _problem(error: CycloptsError, arguments: Sequence[str]) -> str:
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, arguments)
    if isinstance(error, UnknownCommandError):
        return _unknown_command(error)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected word {error.unused_tokens[0].replace(DASH, '-')!r}"
    if isinstance(error, CoercionError) and error.token is not None:
        if get_origin(error.target_type) is Literal:
            return _located(error.token, f"must be {' or '.join(get_args(error.target_type))}")
        kinds = [
            hint for hint in (error.target_type, *get_args(error.target_type)) if hint in KINDS
        ]
        kind = KINDS[kinds[0]] if kinds else "a value of another type"
        return _located(error.token, f"must be {kind}")
    if isinstance(error, ValidationError) and error.argument and error.argument.tokens:
        return _located(error.argument.tokens[0], error.exception_message)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} occurs twice; give it once"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        if error.keyword is None:
            return f"{error.argument.name} is missing; give it"
        return f"{error.keyword} needs a value"
    return " ".join(str(error).split()).rstrip(".")


def _located(token: Token, problem: str) -> str:
    """Return a problem after the option and value as they were typed."""
    if token.source == "word":
        return f"{token.keyword}={token.value!r} {problem}"
    if token.source not in ("", "cli"):
        return str(_wrong(token.source, token.keyword or "", f"{token.value} {problem}"))
    return f"{token.keyword or ''} {token.value} {problem}".strip()


def _unknown_option(error: UnknownOptionError, arguments: Sequence[str]) -> str:
    name = (error.token.keyword or error.token.value).split("=", 1)[0]
    knob = name.lstrip("-").replace("-", "_")
    has_words = any(item.field_info.name == "words" for item in error.argument_collection)
    if has_words and name.startswith("--"):
        from unmask.cli.methods import knob_names

        if knob in knob_names():
            word = _as_word(knob, name, arguments)
            return (
                f"unknown option {name}: {knob} is a knob of a method; write it as a word: {word}"
            )
    names = [item for argument in error.argument_collection for item in argument.names]
    return f"unknown option {name}" + _nearest(name, [item for item in names if item[0] == "-"])


def _as_word(knob: str, name: str, arguments: Sequence[str]) -> str:
    """Return the word form of a knob that was typed as a flag."""
    for text, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if text == name and following and not following.startswith("--"):
            return f"{knob}={following}"
        if text.startswith(f"{name}="):
            return f"{knob}={text.partition('=')[2]}"
    return f"{knob}=VALUE"


def _unknown_command(error: UnknownCommandError) -> str:
    name = (error.unused_tokens or [""])[0].replace(DASH, "-")
    names = [] if error.app is None else [item for item in error.app if not item.startswith("-")]
    return f"unknown command {name!r}" + _nearest(name, names)


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]}?" if near else ""
