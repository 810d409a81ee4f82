"""Presets and words composed to one checked tree that knows where every value came from.

Precedence: schema default < dataset preset < model preset < cache preset < generation preset < recipe <
config file < command line. Hydra composes; the schema says what there is; layers are read off Hydra's own
list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.config.overrides import Word, from_tree, leaves, parse
from unmask.config.presets_index import ORDER, PRIMARY, Library
from unmask.config.schema import (
    ALIASES,
    CHOICES,
    GROUPS,
    REFUSED,
    EvalKeys,
    check_range,
    fields_of,
)
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import set_field

SCHEMA_DEFAULT = "schema default"
SOFT = ("dataset preset", "model preset", "cache preset")
"""Layers whose knobs are suggestions: left out where the decoder does not have them."""


@dataclass(frozen=True)
class Value:
    """A key's value and the layer that said it."""

    value: Any
    layer: str

    @property
    def is_given(self) -> bool:
        """Whether anyone said it."""
        return self.layer != SCHEMA_DEFAULT

    @property
    def is_soft(self) -> bool:
        """Whether a preset of something else than the decoder suggested it."""
        return self.layer.startswith(SOFT)


@dataclass(frozen=True)
class Composed:
    """All keys of an evaluation, dotted, in the schema's order; what was changed on the way."""

    values: Mapping[str, Value]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """A key's value."""
        return self.values[name].value

    def group(self, name: str) -> dict[str, Value]:
        """The keys of a group that are no fixed ones: knobs that were said."""
        prefix, fixed = f"{name}.", fields_of(name)
        own = {
            key.removeprefix(prefix): v for key, v in self.values.items() if key.startswith(prefix)
        }
        return {key: value for key, value in own.items() if key not in fixed}


@dataclass(frozen=True)
class Sources:
    """Where values come from beside the command line.

    `models_folder` holds checkpoints in folders called as the preset or as the hub's model; `data_folder`
    the tasks' files; `may_run_code`: the user allows code evaluation by an environment variable.
    """

    config_dir: Path | None = None
    config_file: Path | None = None
    models_folder: Path | None = None
    data_folder: Path | None = None
    may_run_code: bool = False


def compose(texts: Sequence[str], sources: Sources | None = None) -> Composed:
    """The configuration of `key=value` words. Raises ConfigError and ModelError."""
    sources = sources or Sources()
    library = Library(sources.config_dir)
    words = parse(texts)
    if sources.config_file is not None:
        words = _with_file(words, sources.config_file)
    words = _with_dataset_preset([_checked(word) for word in words], library)
    words = [_chosen(word, library) for word in words]
    tree, chosen = _hydra(library, words)
    layers = _layers(library, words, chosen)
    values = _check(tree, layers)
    return Composed(_with_environment(values, sources))


def _with_file(words: list[Word], path: Path) -> list[Word]:
    """The file's words, and the command line's in place of those it repeats."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {str(path)!r} cannot be read: {reason}") from None
    given = {word.key for word in words}
    said = from_tree(_as_keys(tree), f"config file {path}")
    return [word for word in said if word.key not in given] + words


def _as_keys(tree: Any) -> Any:
    """A run folder's config.yaml (names of `EvalSettings`) in the schema's keys; others as they are."""
    if not isinstance(tree, dict) or not {"task", "knobs"} <= set(tree):
        return tree
    rest = {key: value for key, value in tree.items() if key != "knobs"}
    knobs = dict(tree["knobs"] or {})
    found = {f"generation.{k}": v for k, v in knobs.items() if not k.startswith("cache.")}
    found |= {k: v for k, v in knobs.items() if k.startswith("cache.")}
    renamed = {"model": "model.path", "cache": "cache.name"}
    return found | {renamed.get(key, key): value for key, value in rest.items()}


def _checked(word: Word) -> Word:
    """A word whose key exists. Raises ConfigError, with the nearest name or the reason."""
    if word.is_choice:
        return word
    if word.key in REFUSED:
        _refuse(word.key, word.value)
    elif not _exists(word.key):
        raise _unknown(word.said)
    return word


def _refuse(name: str, value: Any) -> None:
    refused = REFUSED[name]
    if value not in refused.allowed:
        allowed = ", ".join("null" if v is None else str(v).lower() for v in refused.allowed)
        raise ConfigError(
            f"{name}={value} is not possible here: {refused.reason}; allowed: {allowed}"
        )


def _exists(name: str) -> bool:
    """Whether the schema has a key. Knobs are judged once decoder and cache are known."""
    group, dot, rest = name.partition(".")
    if not dot:
        return name in fields_of(None)
    if group in ("generation", "cache"):
        return bool(rest) and "." not in rest
    return group in GROUPS and rest in fields_of(group)


def _unknown(name: str) -> ConfigError:
    group, dot, _ = name.partition(".")
    others = [*REFUSED, *(other for names in ALIASES.values() for other in names)]
    if dot and (group in GROUPS or group == "eval_args"):
        own = [f"{group}.{key}" for key in fields_of(group)] if group in GROUPS else []
        own += [other for other in others if other.startswith(f"{group}.")]
    else:
        own = [*fields_of(None), *CHOICES, *(other for other in others if "." not in other)]
    return unknown_name("key", name, own)


def _with_dataset_preset(words: list[Word], library: Library) -> list[Word]:
    """`dataset.name=gsm8k` also takes what the preset of that name says of lengths."""
    named = next((word for word in words if word.key == "dataset.name"), None)
    if named is None or any(word.key == "dataset" for word in words):
        return words
    if ("dataset", named.value) not in library.found:
        return words
    chosen = dataclasses.replace(named, key="dataset", written=str(named.value), said="dataset")
    return [chosen, *words]


def _chosen(word: Word, library: Library) -> Word:
    """A word that chooses a preset, by the name that the preset has in the library."""
    if not word.is_choice or word.is_deletion:
        return word
    if word.value is None:
        return dataclasses.replace(word, written="none" if word.key == "cache" else "null")
    return dataclasses.replace(word, written=library.choose(word.key, str(word.value)))


def _hydra(library: Library, words: list[Word]) -> tuple[dict[str, Any], dict[str, str]]:
    """The composed tree, and the preset of each group in the order in which they were merged."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    library.give_to_hydra({word.key: word.written for word in words if word.is_choice})
    overrides = [word.override() for word in words]
    try:
        with initialize_config_module("unmask.config", version_base="1.3"):
            config = hydra_compose(PRIMARY, overrides=overrides, return_hydra_config=True)
        choices = {group: config.hydra.runtime.choices.get(group) for group in ORDER}
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tree = OmegaConf.to_container(ours, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the configuration does not fit: {reason}") from None
    assert isinstance(tree, dict), "the primary config is a mapping"
    chosen = {group: str(name) for group, name in choices.items() if name is not None}
    return {str(key): value for key, value in tree.items() if not str(key).startswith("_")}, chosen


def _layers(library: Library, words: list[Word], chosen: dict[str, str]) -> dict[str, str]:
    """The layer that every key got its value from; keys of no layer have the schema's default."""
    found: dict[str, str] = {}
    for group, name in chosen.items():
        preset = library.found[group, name]
        what = "recipe" if preset.group == "recipe" else f"{preset.group} preset"
        found |= dict.fromkeys(preset.values, f"{what} {preset.name}")
    for word in words:
        if word.is_deletion:
            found.pop(word.key, None)
        elif not word.is_choice:
            found[word.key] = word.layer
    return found


def _check(tree: dict[str, Any], layers: Mapping[str, str]) -> dict[str, Value]:
    """Every value with its type and layer; fixed keys that a word deleted have their defaults again."""
    flat = dict(leaves(tree))
    for name in flat:
        if name in REFUSED:
            _refuse(name, flat[name])
        elif not _exists(name):
            raise _unknown(name)
    values: dict[str, Value] = {}
    for group in (None, *GROUPS):
        for name, item in fields_of(group).items():
            dotted = name if group is None else f"{group}.{name}"
            value, layer = flat.pop(dotted, item.default), layers.get(dotted, SCHEMA_DEFAULT)
            values[dotted] = Value(_typed(group, name, dotted, value), layer)
            check_range(dotted, item, values[dotted].value)
    for name, value in flat.items():
        if name not in REFUSED:
            values[name] = Value(value, layers.get(name, SCHEMA_DEFAULT))
    return values


def _typed(group: str | None, name: str, dotted: str, value: Any) -> Any:
    """A value as its field's type; errors name the whole key."""
    cls = EvalKeys if group is None else GROUPS[group]
    try:
        return set_field(cls, name, value)
    except ConfigError as error:
        raise ConfigError(str(error).replace(name, dotted, 1)) from None


def _with_environment(values: dict[str, Value], sources: Sources) -> dict[str, Value]:
    """What the environment says where no word does."""
    found = dict(values)
    folder = sources.models_folder
    if folder is not None and (values["model.path"].is_soft or not values["model.path"].is_given):
        for name in (values["model.name"].value, Path(str(values["model.path"].value)).name):
            if (folder / name).is_dir():
                found["model.path"] = Value(str(folder / name), "environment UNMASK_MODELS")
                break
    if sources.data_folder is not None and not values["dataset.path"].is_given:
        found["dataset.path"] = Value(str(sources.data_folder), "environment UNMASK_DATA")
    if sources.may_run_code and not values["confirm_run_unsafe_code"].is_given:
        found["confirm_run_unsafe_code"] = Value(True, "environment HF_ALLOW_CODE_EVAL")
    return found
