"""The presets that can be chosen: files, a user's folder or file, and every decoder and cache.

A decoder or cache needs no preset file: its name is a preset that names it. Hydra gets all of them through
its own store, since half of them are no files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from unmask.config.overrides import leaves
from unmask.config.schema import CHOICES, canonical, static_defaults
from unmask.errors import ConfigError, ModelError, unknown_name

FILES = "unmask.config.presets"
PRIMARY = "eval"
ORDER: dict[str, str | None] = {
    "dataset": None,
    "model": "demo",
    "cache": "none",
    "generation": "vanilla",
    "recipe": None,
}
"""Groups as they are merged, each with what is chosen when nothing is said."""
IS_GLOBAL = re.compile(r"^\s*#\s*@package\s+_global_\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Preset:
    """A preset's values by dotted key, and what it chooses of other groups (Hydra's `defaults`)."""

    name: str
    group: str
    values: dict[str, Any]
    defaults: tuple[Any, ...] = ()

    def overrides(self) -> set[tuple[str, str]]:
        """Presets of other groups that it chooses."""
        pairs = [pair for item in self.defaults for pair in item.items()]
        return {(name.removeprefix("override /"), str(value)) for name, value in pairs}

    def node(self) -> dict[str, Any]:
        """What Hydra merges at the root."""
        tree: dict[str, Any] = {"defaults": list(self.defaults)} if self.defaults else {}
        for dotted, value in self.values.items():
            *parents, last = dotted.split(".")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return tree


@dataclass
class Library:
    """All presets by group and name; `folder` is a user's (`--config-dir`)."""

    folder: Path | None = None
    found: dict[tuple[str, str], Preset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what there is. Raises ConfigError for files that cannot be read."""
        from unmask import caches, decoders
        from unmask.models import BUNDLED

        for name in decoders.names():
            self._add(Preset(name, "generation", {"generation.strategy": name}))
        for name in caches.names():
            self._add(Preset(name, "cache", {"cache.name": name}))
        for name in BUNDLED:
            self._add(Preset(name, "model", {"model.name": name, "model.path": name}))
        for group in ("model", "dataset", "cache", "recipe"):
            for file in resources.files(FILES).joinpath(group).iterdir():
                if file.name.endswith(".yaml"):
                    text = file.read_text(encoding="utf-8")
                    self._add(read_preset(file.name.removesuffix(".yaml"), group, text, file.name))
        if self.folder is not None:
            self._add_folder(self.folder)

    def _add(self, preset: Preset) -> None:
        self.found[preset.group, preset.name] = preset

    def _add_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {str(folder)!r} is not a folder")
        count = 0
        for group in CHOICES:
            for file in sorted((folder / group).glob("*.yaml")):
                name, count = file.stem, count + 1
                if (group, name) in self.found:
                    raise ConfigError(f"{file}: {group}={name} is there already; rename the file")
                self._add(read_preset(name, group, _text(file), str(file)))
        if not count:
            raise ConfigError(
                f"--config-dir {str(folder)!r} holds no presets; put them in folders called "
                f"{', '.join(CHOICES)}, e.g. generation/mine.yaml"
            )

    def names(self, group: str) -> list[str]:
        """Names of a group's presets."""
        return sorted(name for own, name in self.found if own == group)

    def choose(self, group: str, value: str) -> str:
        """The name of the preset that `group=value` means; a file or a folder becomes one.

        Raises ConfigError, with the nearest name.
        """
        if (group, value) in self.found:
            return value
        path = Path(value).expanduser()
        if group == "model" and (path.is_dir() or value.count("/") == 1 or path.is_absolute()):
            return self._named(Preset(value, group, {"model.name": path.name, "model.path": value}))
        if group == "dataset" and path.is_dir() and ("/" in value or not value.isidentifier()):
            return self._named(Preset(value, group, {"dataset.path": value}))
        if value.endswith((".yaml", ".yml")):
            return self._named(read_preset(value, group, _text(path), value))
        if group == "dataset":  # a task without a preset of its own; the tasks know their names
            return self._named(Preset(value, group, {"dataset.name": value}))
        if group == "model":
            hint = str(unknown_name("model", value, self.names(group)))
            raise ModelError(f"{hint}; or a folder with config.json, or a hub id like owner/name")
        raise unknown_name(f"{group} preset", value, self.names(group))

    def _named(self, preset: Preset) -> str:
        """A preset under a name that Hydra's grammar takes."""
        digest = hashlib.blake2b(preset.name.encode(), digest_size=4).hexdigest()
        name = re.sub(r"[^A-Za-z0-9_]", "_", Path(preset.name).stem) + "_" + digest
        self.found[preset.group, name] = preset
        return name

    def give_to_hydra(self, chosen: dict[str, str]) -> None:
        """Put the fixed keys with their defaults and the presets that a choice needs into Hydra's store."""
        from hydra.core.config_store import ConfigStore

        store = ConfigStore.instance()
        defaults = ["_self_", *({group: name} for group, name in ORDER.items())]
        store.store(name=PRIMARY, node={"defaults": defaults, **static_defaults()})
        wanted = {(group, name) for group, name in (ORDER | chosen).items() if name is not None}
        for group, name in wanted:
            if (group, name) in self.found:
                wanted = wanted | self.found[group, name].overrides()
        for group, name in wanted & set(self.found):
            node = self.found[group, name].node()
            store.store(name=name, node=node, group=group, package="_global_")


def read_preset(name: str, group: str, text: str, where: str) -> Preset:
    """A preset of YAML text. Raises ConfigError."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must hold keys and values")
    defaults = tree.pop("defaults", [])
    if not isinstance(defaults, list) or not all(map(_is_override, defaults)):
        raise ConfigError(
            f"defaults of {where} must be a list of lines like - override /cache: dual"
        )
    prefix = "" if IS_GLOBAL.search(text) else f"{group}."
    values = {canonical(dotted): value for dotted, value in leaves(tree, prefix)}
    return Preset(name, group, values, tuple(defaults))


def _is_override(item: Any) -> bool:
    """Whether a line of `defaults` chooses a preset of another group."""
    allowed = {f"override /{group}" for group in ORDER}
    return isinstance(item, dict) and len(item) == 1 and set(item) <= allowed


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"preset {str(path)!r} cannot be read: {reason}") from None
