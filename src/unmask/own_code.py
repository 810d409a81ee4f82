"""Code of users: decoders and caches (object, class, file, `module:Class`, entry point), and families.

`Workshop.admit` gives each a name in the registry of its kind, by which everything else finds it. Only
callers whose text comes from the person that runs the process may call it: it runs the code that the text
names. A server's requests name what is registered already.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, NewType, TypeVar

from unmask.errors import ConfigError, PluginError, cut_text
from unmask.knobs import split_call
from unmask.plugins import Registry, check_class, is_reference, module_names

Base = TypeVar("Base")
Reference = NewType("Reference", str)
"""A text that no type checker can know as a method: a file, `module:Class`, an entry point, a call such as
`threshold(threshold=0.8)`, or a name that is computed."""


@dataclass(frozen=True)
class Workshop(Generic[Base]):
    """Admits the users' plug-ins of one kind.

    `base` is the class that they extend, `attribute` the name by which a file may give its class, and
    `group` the name of the entry points of installed packages.
    """

    registry: Registry[type[Base]]
    base: type[Base]
    attribute: str
    group: str

    def admit(self, value: object) -> tuple[object, dict[str, object]]:
        """Return the name of a plug-in and the knobs of its instance; text may be a call with knobs.

        `value`: an instance or a class below `base`, a path, or a text; anything else is returned as it is.
        Raises ConfigError, and PluginError for code that cannot be used.
        """
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, str):
            name, inside = split_call(value)
            self._admit_text(name)
            if "inner" in inside:
                self.admit(inside["inner"])
            return value, {}
        if isinstance(value, type) and issubclass(value, self.base):
            return self._admit_class(value), {}
        if isinstance(value, self.base):
            return self._admit_class(type(value)), self._knobs_of(value)
        return value, {}

    def admit_all(self, values: Mapping[str, object], key: str, prefix: str) -> dict[str, object]:
        """Return the values with names for the plug-ins at `key` and at `prefix` + "inner"."""
        admitted = dict(values)
        for place in (key, f"{prefix}inner"):
            if place not in values:
                continue
            admitted[place], knobs = self.admit(values[place])
            for name, value in knobs.items():
                if admitted.setdefault(prefix + name, value) != value:
                    raise ConfigError(
                        f"{name}={value!r} of the {self.registry.kind} and "
                        f"{prefix}{name}={admitted[prefix + name]!r} differ; give one of them"
                    )
        return admitted

    def _knobs_of(self, plugin: object) -> dict[str, object]:
        """Return the knobs of an instance that are not defaults. Raises PluginError for other state."""
        assert dataclasses.is_dataclass(plugin), "the base classes are dataclasses"
        fields = dataclasses.fields(plugin)
        more = sorted(vars(plugin).keys() - {field.name for field in fields})
        if more:
            raise PluginError(
                f"{self.registry.kind} {type(plugin).__name__} keeps {more[0]!r} outside of its fields; "
                f"write it as a dataclass, `@dataclass(frozen=True)`, whose fields are its knobs"
            )
        knobs: dict[str, object] = {}
        for field in fields:
            value = getattr(plugin, field.name)
            if isinstance(value, self.base):
                name, inside = self.admit(value)
                knobs |= {**inside, field.name: name}
            elif value != field.default:
                knobs[field.name] = value
        return knobs

    def _admit_text(self, name: str) -> None:
        """Register what a text names, unless it is registered. Raises ConfigError."""
        package = self.registry.package
        if name in module_names(package, self.registry.exclude):
            return
        if is_reference(name):
            self._add(name, self._load(name))
        elif name not in self.registry.own:
            for point in entry_points(group=self.group):
                if point.name == name:
                    self._add(
                        name, check_class(load_point(point), self.base, f"entry point {name}")
                    )

    def _admit_class(self, cls: type[Base]) -> str:
        package, _, stem = cls.__module__.rpartition(".")
        if package == self.registry.package and self.registry.get(stem) is cls:
            return stem
        name = f"{cls.__module__}:{cls.__qualname__}"
        self._add(name, check_class(cls, self.base, name))
        return name

    def _add(self, name: str, cls: type[Base]) -> None:
        if "reference" not in vars(cls):
            cls.reference = name  # type: ignore[attr-defined]
        self.registry.add(name, cls)

    def add_named(self, reference: str) -> str:
        """Register the class of a file or of `module:Class` under a short name, and return that name.

        It is the file's or the class's, in lower case. Raises ConfigError and PluginError.
        """
        if not is_reference(reference):
            raise ConfigError(
                f"{cut_text(reference)!r} is neither a file (./my_decoder.py) nor module:Class"
            )
        cls = self._load(reference)
        path, _, attribute = reference.rpartition(":")
        name = (attribute if path else Path(reference).stem).lower()
        self._add(name, cls)
        return name

    def _load(self, reference: str) -> type[Base]:
        place, _, attribute = reference.rpartition(":")
        if not place or reference.endswith(".py"):
            place, attribute = reference, ""
        module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
        return self._class_of(module, attribute, place)

    def _class_of(self, module: ModuleType, attribute: str, place: str) -> type[Base]:
        names = vars(module)
        if attribute:
            found: object = module
            for part in attribute.split("."):
                found = getattr(found, part, None)
            if found is None:
                raise PluginError(
                    f"{place}: defines no {attribute}; it has {_listed(self._classes(module))}"
                )
            return check_class(found, self.base, f"{place}: {attribute}")
        if self.attribute in names:
            return check_class(names[self.attribute], self.base, f"{place}: {self.attribute}")
        classes = self._classes(module)
        if len(classes) != 1:
            raise PluginError(
                f"{place}: needs {self.attribute} = CLASS, or one subclass of {self.base.__name__}; it has "
                f"{_listed(classes)}; name one of several as {place}:CLASS"
            )
        return check_class(classes[0], self.base, f"{place}: {classes[0].__name__}")

    def _classes(self, module: ModuleType) -> list[type[Base]]:
        """Return the subclasses of `base` that a module defines itself."""
        return [
            item
            for item in vars(module).values()
            if isinstance(item, type)
            and issubclass(item, self.base)
            and item.__module__ == module.__name__
        ]


def load_function(reference: str) -> Callable[..., object]:
    """Return the function that `FILE.py:NAME` or `module:NAME` names; it runs the module's code.

    Raises ConfigError for another form, PluginError for code without that function.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(
            f"{cut_text(reference)!r} is neither FILE.py:NAME nor module:NAME; name a function so"
        )
    module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    found = vars(module).get(name)
    if not callable(found):
        raise PluginError(f"{place}: defines no function {name}; write it, or name another one")
    function: Callable[..., object] = found
    return function


def _listed(classes: list[type[Base]]) -> str:
    return ", ".join(cls.__name__ for cls in classes[:8]) or "none"


def points_of(group: str) -> list[EntryPoint]:
    """Return the entry points of a group that installed packages declare; none is imported."""
    return list(entry_points(group=group))


def load_module(reference: str) -> ModuleType:
    """Import a file ending in .py or a module by its name. Raises ConfigError and PluginError."""
    return _file_module(Path(reference)) if reference.endswith(".py") else _module(reference)


def load_point(point: EntryPoint) -> object:
    """Import what an entry point names. Raises PluginError."""
    try:
        loaded: object = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"entry point {point.name}={point.value} cannot be imported ({type(error).__name__}: "
            f"{cut_text(str(error))}); mend or uninstall its package"
        ) from error
    return loaded


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{cut_text(name)}: cannot be imported ({type(error).__name__}: {cut_text(str(error))}); give "
            f"module:Class of a module on the path, or a file (./my_decoder.py)"
        ) from error


def _file_module(path: Path) -> ModuleType:
    """Import a file, again if it has changed. Raises ConfigError, or PluginError if it fails."""
    try:
        path = path.expanduser().resolve(strict=True)
        stamp = path.stat().st_mtime_ns
        content = path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{cut_text(str(path))}: cannot be read ({reason}); give a Python file"
        ) from None
    digest = zlib.crc32(content)
    name = f"unmask_own_{zlib.crc32(str(path).encode()):08x}_{digest:08x}_{stamp:x}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path ending in .py has a loader"
    assert spec.loader is not None, "a path ending in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(
            f"{path}: cannot be imported ({type(error).__name__}: {cut_text(str(error))}); mend it"
        ) from error
    return module
