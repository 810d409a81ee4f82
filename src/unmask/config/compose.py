"""Composition of presets and overrides into one checked tree with the origin of every value.

Precedence: schema default < dataset preset < model preset < cache preset < generation preset < recipe <
config file < command line. Hydra composes; the schema defines the keys; the layer of each value follows
from Hydra's choices of presets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.config.overrides import Override, from_tree, leaves, parse
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
"""Layers whose knobs are suggestions, ignored for decoders without such a knob."""


@dataclass(frozen=True)
class Value:
    """Value of a key, and the layer that it comes from."""

    value: Any
    layer: str

    @property
    def is_set(self) -> bool:
        """True unless the value is the default of the schema."""
        return self.layer != SCHEMA_DEFAULT

    @property
    def is_soft(self) -> bool:
        """True for a suggestion by a preset of a dataset, model or cache."""
        return self.layer.startswith(SOFT)


@dataclass(frozen=True)
class Composed:
    """Values of all keys of an evaluation, dotted, in the order of the schema; notes on changed values."""

    values: Mapping[str, Value]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """Return the value of a key."""
        return self.values[name].value

    def group(self, name: str) -> dict[str, Value]:
        """Return the knobs of a group: its keys that are not in the schema."""
        prefix, fixed = f"{name}.", fields_of(name)
        return {
            key.removeprefix(prefix): value
            for key, value in self.values.items()
            if key.startswith(prefix) and key.removeprefix(prefix) not in fixed
        }


@dataclass(frozen=True)
class Sources:
    """Sources of values besides the command line.

    `models_folder`: checkpoints in folders named like the preset or the hub's model. `data_folder`: files
    of the tasks. `may_run_code`: code evaluation is allowed by an environment variable.
    """

    config_dir: Path | None = None
    config_file: Path | None = None
    models_folder: Path | None = None
    data_folder: Path | None = None
    may_run_code: bool = False


def compose(texts: Sequence[str], sources: Sources | None = None) -> Composed:
    """Compose the configuration of `key=value` overrides. Raises ConfigError and ModelError."""
    sources = sources or Sources()
    library = Library(sources.config_dir)
    overrides = parse(texts)
    if sources.config_file is not None:
        overrides = _add_file(overrides, sources.config_file)
    for override in overrides:
        _check_key(override)
    overrides = _add_dataset_preset(overrides, library)
    overrides = [_resolve_preset(override, library) for override in overrides]
    tree, choices = _hydra(library, overrides)
    values = _check(tree, _layers(library, overrides, choices))
    return Composed(_add_environment(values, sources))


def _add_file(overrides: list[Override], path: Path) -> list[Override]:
    """Prepend the overrides of a file, except for keys set on the command line."""
    import yaml

    from unmask.yaml_text import parse_yaml

    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {str(path)!r} cannot be read: {reason}") from None
    keys = {override.key for override in overrides}
    in_file = from_tree(_schema_keys(tree), f"config file {path}")
    return [override for override in in_file if override.key not in keys] + overrides


def _schema_keys(tree: object) -> object:
    """Rename the keys of a run folder's config.yaml (names of `EvalSettings`) to those of the schema."""
    if (
        not isinstance(tree, dict)
        or "knobs" not in tree
        or not {"task", "dataset.name"} & set(tree)
    ):
        return tree
    names = {"model": "model.path", "cache": "cache.name"}
    renamed = {names.get(key, key): value for key, value in tree.items() if key != "knobs"}
    for key, value in (tree["knobs"] or {}).items():
        renamed[key if key.startswith("cache.") else f"generation.{key}"] = value
    return renamed


def _check_key(override: Override) -> None:
    """Raise ConfigError for a key that does not exist or cannot have this value."""
    if override.is_choice:
        return
    if override.key in REFUSED:
        _check_refused(override.key, override.value)
    elif not _exists(override.key):
        raise _unknown(override.typed_key)


def _check_refused(name: str, value: object) -> None:
    refused = REFUSED[name]
    if value not in refused.allowed:
        allowed = ", ".join("null" if v is None else str(v).lower() for v in refused.allowed)
        raise ConfigError(
            f"{name}={value} is not possible here: {refused.reason}; allowed: {allowed}"
        )


def _exists(name: str) -> bool:
    """Return True if the schema has a key; knobs are checked later, against decoder and cache."""
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
        names = [f"{group}.{key}" for key in fields_of(group)] if group in GROUPS else []
        names += [other for other in others if other.startswith(f"{group}.")]
    else:
        names = [*fields_of(None), *CHOICES, *(other for other in others if "." not in other)]
    return unknown_name("key", name, names)


def _add_dataset_preset(overrides: list[Override], library: Library) -> list[Override]:
    """Choose the dataset preset with the name of the task, unless a preset is chosen already."""
    task = next((override for override in overrides if override.key == "dataset.name"), None)
    if task is None or any(override.key == "dataset" for override in overrides):
        return overrides
    if ("dataset", task.value) not in library.presets:
        return overrides
    choice = dataclasses.replace(task, key="dataset", text=str(task.value), typed_key="dataset")
    return [choice, *overrides]


def _resolve_preset(override: Override, library: Library) -> Override:
    """Replace the value of a choice by the name of the preset in the library."""
    if not override.is_choice or override.is_deletion:
        return override
    if override.value is None:
        return dataclasses.replace(override, text="none" if override.key == "cache" else "null")
    return dataclasses.replace(override, text=library.choose(override.key, str(override.value)))


def _hydra(library: Library, overrides: list[Override]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the composed tree, and the preset of each group in the order of merging."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    library.register({item.key: item.text for item in overrides if item.is_choice})
    words = [override.for_hydra() for override in overrides]
    try:
        with initialize_config_module("unmask.config", version_base="1.3"):
            config = hydra_compose(PRIMARY, overrides=words, return_hydra_config=True)
        presets = {group: config.hydra.runtime.choices.get(group) for group in ORDER}
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tree = OmegaConf.to_container(ours, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the configuration does not fit: {reason}") from None
    assert isinstance(tree, dict), "the primary config is a mapping"
    choices = {group: str(name) for group, name in presets.items() if name is not None}
    return {str(key): value for key, value in tree.items() if not str(key).startswith("_")}, choices


def _layers(library: Library, overrides: list[Override], choices: dict[str, str]) -> dict[str, str]:
    """Return the layer of each key; keys without one have the default of the schema."""
    layers: dict[str, str] = {}
    for group, name in choices.items():
        preset = library.presets[group, name]
        kind = "recipe" if preset.group == "recipe" else f"{preset.group} preset"
        layers |= dict.fromkeys(preset.values, f"{kind} {preset.name}")
    for override in overrides:
        if override.is_deletion:
            layers.pop(override.key, None)
        elif not override.is_choice:
            layers[override.key] = override.layer
    return layers


def _check(tree: dict[str, object], layers: Mapping[str, str]) -> dict[str, Value]:
    """Convert and check every value; keys of the schema that were deleted have their defaults again."""
    flat = dict(leaves(tree))
    for name in flat:
        if name in REFUSED:
            _check_refused(name, flat[name])
        elif not _exists(name):
            raise _unknown(name)
    values: dict[str, Value] = {}
    for group in (None, *GROUPS):
        for name, item in fields_of(group).items():
            dotted = name if group is None else f"{group}.{name}"
            value, layer = flat.pop(dotted, item.default), layers.get(dotted, SCHEMA_DEFAULT)
            values[dotted] = Value(_convert(group, name, dotted, value), layer)
            check_range(dotted, item, values[dotted].value)
    for name, value in flat.items():
        if name not in REFUSED:
            values[name] = Value(value, layers.get(name, SCHEMA_DEFAULT))
    return values


def _convert(group: str | None, name: str, dotted: str, value: object) -> object:
    """Convert a value to the type of its field; errors name the whole key."""
    cls = EvalKeys if group is None else GROUPS[group]
    try:
        return set_field(cls, name, value)
    except ConfigError as error:
        raise ConfigError(str(error).replace(name, dotted, 1)) from None


def _add_environment(values: dict[str, Value], sources: Sources) -> dict[str, Value]:
    """Fill in the values of the environment that no override sets."""
    filled = dict(values)
    folder = sources.models_folder
    if folder is not None and (values["model.path"].is_soft or not values["model.path"].is_set):
        for name in (values["model.name"].value, Path(str(values["model.path"].value)).name):
            if (folder / name).is_dir():
                filled["model.path"] = Value(str(folder / name), "environment UNMASK_MODELS")
                break
    if sources.data_folder is not None and not values["dataset.path"].is_set:
        filled["dataset.path"] = Value(str(sources.data_folder), "environment UNMASK_DATA")
    if sources.may_run_code and not values["confirm_run_unsafe_code"].is_set:
        filled["confirm_run_unsafe_code"] = Value(True, "environment HF_ALLOW_CODE_EVAL")
    return filled
