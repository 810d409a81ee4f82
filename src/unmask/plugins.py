"""Modules that are found by their file names: decoders, caches and model families."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

from unmask.errors import PluginError

Base = TypeVar("Base")


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
    cls: object = vars(module)[attribute]
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise PluginError(
            f"{module.__file__}: {attribute}={cls!r} must be a subclass of {base.__name__}; mend or delete "
            f"this file"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise PluginError(
            f"{module.__file__}: {cls.__name__} defines no {missing}; add them or delete this file"
        )
    knobs = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    bare = [field.name for field in knobs if not field.metadata.get("help")]
    if bare:
        raise PluginError(
            f"{module.__file__}: {bare[0]} of {cls.__name__} has no help text; write it as "
            f"`{bare[0]}: TYPE = knob(DEFAULT, HELP)`, or delete this file"
        )
    return cls


def usable_names(
    package: str, exclude: Sequence[str], load: Callable[[str], object]
) -> tuple[list[str], dict[str, str]]:
    """Return the names of the modules that `load` accepts, and its PluginErrors for the others."""
    names: list[str] = []
    errors: dict[str, str] = {}
    for name in module_names(package, exclude):
        try:
            load(name)
        except PluginError as error:
            errors[name] = str(error)
        else:
            names.append(name)
    return names, errors


def _path_of(package: str, name: str) -> Path:
    """Return the file of a module that may not be importable."""
    folders = [Path(folder) for folder in import_module(package).__path__]
    files = [path for folder in folders for path in (folder / f"{name}.py", folder / name)]
    return next((path for path in files if path.exists()), folders[0] / f"{name}.py")
