"""Modules that are found by their file names: decoders, caches and model families."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Generic, TypeVar

from unmask.errors import ConfigError, PluginError, cut_text, unknown_name

Base = TypeVar("Base")
Plugin = TypeVar("Plugin")


def module_names(package: str, exclude: Sequence[str] = ()) -> list[str]:
    """Return the names of a package's modules in order; none is imported."""
    found = iter_modules(import_module(package).__path__)
    return sorted(item.name for item in found if item.name not in exclude)


def load_plugin(package: str, name: str, required: Sequence[str]) -> ModuleType:
    """Import a module that must define the names `required`.

    Raises PluginError with the module's file when it cannot be imported or lacks a name.
    """
    try:
        module = import_module(f"{package}.{name}")
    except (Exception, SystemExit) as error:  # a script may exit when it is imported
        path = _path_of(package, name)
        raise PluginError(
            f"{path}: cannot be imported ({type(error).__name__}: {error}); mend or delete this file"
        ) from error
    missing = [each for each in required if not hasattr(module, each)]
    if missing:
        raise PluginError(
            f"{module.__file__}: defines no {', '.join(missing)}; required: {', '.join(required)}; "
            f"add them or delete this file"
        )
    return module


def load_class(package: str, name: str, attribute: str, base: type[Base]) -> type[Base]:
    """Import a module and return its class `attribute`, a dataclass of documented knobs below `base`.

    Raises PluginError with the module's file when the class is missing, no subclass of `base`, abstract, or
    has a knob without a help text.
    """
    module = load_plugin(package, name, (attribute,))
    cls = check_class(vars(module)[attribute], base, f"{module.__file__}: {attribute}")
    knobs = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    bare = [knob.name for knob in knobs if not knob.metadata.get("help")]
    if bare:
        raise PluginError(
            f"{module.__file__}: {bare[0]} of {cls.__name__} has no help text; write it as "
            f"`{bare[0]}: TYPE = knob(DEFAULT, HELP)`, or delete this file"
        )
    return cls


def check_class(cls: object, base: type[Base], place: str) -> type[Base]:
    """Return a class that can be built below `base`. Raises PluginError, which begins with `place`."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(
            f"{place}={cut_text(repr(cls))} must be a subclass of {base.__name__}; mend or delete it"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise PluginError(f"{place}: {cls.__name__} defines no {missing}; add them or delete it")
    return cls


def is_reference(name: str) -> bool:
    """Return True for the text of a file or of `module:Class`, which no name of the package is."""
    return ":" in name or name.endswith(".py")


@dataclass(frozen=True)
class Registry(Generic[Plugin]):
    """The plug-ins of a package by file name, except for the modules `exclude`.

    `kind` is their name in errors. `load` imports one, and raises PluginError for a file that cannot be
    used. `own` has the plug-ins of users by the names under which they were added in this process.
    """

    package: str
    exclude: tuple[str, ...]
    kind: str
    load: Callable[[str], Plugin]
    own: dict[str, Plugin] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names of all usable plug-ins; for the files that cannot be used see `broken`."""
        return [name for name, error in self._errors().items() if error is None]

    def served_names(self) -> list[str]:
        """Return the names that requests to a server may use: of the package's and of named plug-ins."""
        named = [name for name in self.own if not is_reference(name)]
        return sorted([*self.names(), *named])

    def add(self, name: str, plugin: Plugin) -> None:
        """Add a user's plug-in under a name. Raises ConfigError for the name of one of the package's."""
        if name in module_names(self.package):
            raise ConfigError(
                f"{self.kind} {name!r} exists in {self.package}; give yours another name"
            )
        self.own[name] = plugin

    def broken(self) -> dict[str, str]:
        """Return the reason for each file that cannot be used, by its name; the reason gives the path."""
        return {name: error for name, error in self._errors().items() if error is not None}

    def get(self, name: str) -> Plugin:
        """Return a plug-in.

        Raises ConfigError for an unknown name, and its subclass PluginError for a file that cannot be used.
        """
        if name in self.own:
            return self.own[name]
        if name not in module_names(self.package, self.exclude):
            raise unknown_name(self.kind, str(name), self.names())
        return self.load(name)

    def _errors(self) -> dict[str, str | None]:
        errors: dict[str, str | None] = {}
        for name in module_names(self.package, self.exclude):
            try:
                self.load(name)
            except PluginError as error:
                errors[name] = str(error)
            else:
                errors[name] = None
        return errors


def _path_of(package: str, name: str) -> Path:
    """Return the file of a module that may not be importable."""
    folders = [Path(folder) for folder in import_module(package).__path__]
    files = [path for folder in folders for path in (folder / f"{name}.py", folder / name)]
    return next((path for path in files if path.exists()), folders[0] / f"{name}.py")
