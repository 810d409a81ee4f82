"""The version of this package, which `pyproject.toml` reads from here, and those of installed ones."""

from __future__ import annotations

from collections.abc import Iterable

__version__ = "0.2.0"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package, or "not installed"."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
