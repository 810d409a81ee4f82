"""Index of the presets: files of the package, a user's folder or file, and every decoder and cache.

The name of a decoder or cache is a preset that chooses it. All presets reach Hydra through its config
store, since many of them are not files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import yaml

from unmask.config.overrides import leaves
from unmask.config.schema import CHOICES, canonical, static_defaults
from unmask.errors import ConfigError, ModelError, unknown_name
from unmask.yaml_text import parse_yaml

FILES = "unmask.config.presets"
PRIMARY = "eval"
ORDER: dict[str, str | None] = {
    "dataset": None,
    "model": "demo",
    "cache": "none",
    "generation": "vanilla",
    "recipe": None,
}
"""Groups in the order of merging, each with its default preset."""
IS_GLOBAL = re.compile(r"^\s*#\s*@package\s+_global_\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Preset:
    """Values of a preset by dotted key, and its choices in other groups (Hydra's `defaults`)."""

    name: str
    group: str
    values: dict[str, object]
    defaults: tuple[dict[str, str | None], ...] = ()

    def choices(self) -> list[tuple[str, str]]:
        """Return the presets of other groups that it chooses, as (group, name)."""
        pairs = [pair for item in self.defaults for pair in item.items()]
        return [(name.removeprefix("override /"), str(value)) for name, value in pairs]

    def node(self) -> dict[str, object]:
        """Return the tree that Hydra merges at the root."""
        tree: dict[str, object] = {"defaults": list(self.defaults)} if self.defaults else {}
        for dotted, value in self.values.items():
            *parents, last = dotted.split(".")
            node = tree
            for parent in parents:
                child = node.setdefault(parent, {})
                assert isinstance(child, dict), "dotted keys of one tree"
                node = child
            node[last] = value
        return tree


@dataclass
class Library:
    """All presets by group and name; `folder`: presets of the user (`--config-dir`)."""

    folder: Path | None = None
    presets: dict[tuple[str, str], Preset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read all presets. Raises ConfigError for files that cannot be read."""
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
        self.presets[preset.group, preset.name] = preset

    def _add_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {str(folder)!r} is not a folder")
        count = 0
        for group in CHOICES:
            for file in sorted((folder / group).glob("*.yaml")):
                name, count = file.stem, count + 1
                if (group, name) in self.presets:
                    raise ConfigError(f"{file}: {group}={name} exists already; rename the file")
                self._add(read_preset(name, group, _text(file), str(file)))
        if not count:
            raise ConfigError(
                f"--config-dir {str(folder)!r} holds no presets; put them in folders called "
                f"{', '.join(CHOICES)}, e.g. generation/mine.yaml"
            )

    def names(self, group: str) -> list[str]:
        """Return the names of the presets of a group."""
        return sorted(name for own, name in self.presets if own == group)

    def choose(self, group: str, value: str) -> str:
        """Return the name of the preset for `group=value`, adding one for a file or folder.

        Raises ConfigError with the nearest name for an unknown value.
        """
        if (group, value) in self.presets:
            return value
        path = Path(value).expanduser()
        if group == "model" and (path.is_dir() or value.count("/") == 1 or path.is_absolute()):
            return self._rename(
                Preset(value, group, {"model.name": path.name, "model.path": value})
            )
        if group == "dataset" and path.is_dir() and ("/" in value or not value.isidentifier()):
            return self._rename(Preset(value, group, {"dataset.path": value}))
        if value.endswith((".yaml", ".yml")):
            return self._rename(read_preset(value, group, _text(path), value))
        if group == "dataset":  # a task without a preset of its own, checked with the settings
            return self._rename(Preset(value, group, {"dataset.name": value}))
        if group == "model":
            hint = str(unknown_name("model", value, self.names(group)))
            raise ModelError(f"{hint}; or a folder with config.json, or a hub id like owner/name")
        raise unknown_name(f"{group} preset", value, self.names(group))

    def _rename(self, preset: Preset) -> str:
        """Add a preset under a name that Hydra's grammar accepts; return the name."""
        digest = hashlib.blake2b(preset.name.encode(), digest_size=4).hexdigest()
        name = re.sub(r"[^A-Za-z0-9_]", "_", Path(preset.name).stem) + "_" + digest
        self.presets[preset.group, name] = preset
        return name

    def register(self, chosen: dict[str, str]) -> None:
        """Add the schema's defaults and the presets of a choice to Hydra's config store."""
        from hydra.core.config_store import ConfigStore

        store = ConfigStore.instance()
        defaults = ["_self_", *({group: name} for group, name in ORDER.items())]
        store.store(name=PRIMARY, node={"defaults": defaults, **static_defaults()})
        pairs = {(group, name) for group, name in (ORDER | chosen).items() if name is not None}
        for pair in pairs & set(self.presets):
            pairs = pairs.union(self.presets[pair].choices())
        for group, name in pairs & set(self.presets):
            node = self.presets[group, name].node()
            store.store(name=name, node=node, group=group, package="_global_")


def read_preset(name: str, group: str, text: str, source: str) -> Preset:
    """Parse the YAML of a preset; `source` names it in errors. Raises ConfigError."""
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold keys and values")
    defaults = tree.pop("defaults", [])
    if not isinstance(defaults, list) or not all(map(_is_choice, defaults)):
        raise ConfigError(
            f"defaults of {source} must be a list of lines like - override /cache: dual"
        )
    prefix = "" if IS_GLOBAL.search(text) else f"{group}."
    values = {canonical(dotted): value for dotted, value in leaves(tree, prefix)}
    return Preset(name, group, values, tuple(defaults))


def _is_choice(item: object) -> bool:
    """Return True for a line of `defaults` that chooses a preset of another group."""
    allowed = {f"override /{group}" for group in ORDER}
    return isinstance(item, dict) and len(item) == 1 and set(item) <= allowed


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"preset {str(path)!r} cannot be read: {reason}") from None
