"""Modules that are found by their file names: decoders, caches and model families."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from unmask.errors import PluginError


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
    except Exception as error:
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


def _path_of(package: str, name: str) -> Path:
    """Return the file of a module that may not be importable."""
    folders = [Path(folder) for folder in import_module(package).__path__]
    files = [path for folder in folders for path in (folder / f"{name}.py", folder / name)]
    return next((path for path in files if path.exists()), folders[0] / f"{name}.py")
