"""Find cache policies by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unmask.caches.base import AnyCache
from unmask.errors import ConfigError, unknown_name
from unmask.knobs import field_names, read_value, set_field, split_call

PACKAGE = "unmask.caches"
NO_POLICIES = {"base", "registry"}


def names() -> list[str]:
    """Every cache's name."""
    modules = iter_modules(import_module(PACKAGE).__path__)
    return sorted(item.name for item in modules if item.name not in NO_POLICIES)


@cache
def cache_class(name: str) -> type[AnyCache]:
    """The dataclass of a cache. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("cache", str(name), names())
    found: type[AnyCache] = import_module(f"{PACKAGE}.{name}").CACHE
    return found


def make_cache(
    name: str,
    args: Mapping[str, Any] | None = None,
    block_size: int | None = None,
    compat: Any = None,
) -> AnyCache:
    """A cache policy by name with its knobs, e.g. `dllm(kp=50, kr=7)` or `dllm` and `args`.

    `block_size` is the model's (see `ModelFacts`): `auto` chooses by it. `compat`, if not None, holds for a
    policy that has such a knob and is not told otherwise. Raises ConfigError for an unknown
    name or knob, and for values that are not allowed.
    """
    name, inside = split_call(name) if isinstance(name, str) else (name, {})
    given = dict(args or {})
    for key, value in inside.items():
        if key in given and str(given[key]) != str(value):
            raise ConfigError(f"{key}={value} and {key}={given[key]} contradict; give one of them")
    cls = cache_class(name)
    given = {**inside, **given}
    own = field_names(cls)
    if compat is not None and "compat" in own:
        given.setdefault("compat", compat)
    if "inner" in own:
        inner = read_value(given.get("inner"))
        theirs = {key: value for key, value in given.items() if key not in own}
        if inner is None and theirs:
            raise unknown_name(f"knob for cache {name!r}:", next(iter(theirs)), own)
        made = None if inner is None else make_cache(str(inner), theirs, block_size, compat)
        mine = {key: set_field(cls, key, given[key]) for key in given if key in own - {"inner"}}
        wrap: Callable[..., AnyCache] = cls
        return wrap(inner=made, **mine)
    for key in given:
        if key not in own:
            raise unknown_name(f"knob for cache {name!r}:", key, own)
    policy = cls(**{key: set_field(cls, key, value) for key, value in given.items()})
    other = policy.stands_for(block_size)
    return policy if other is None else make_cache(other)


def describe(cache: AnyCache) -> str:
    """A policy as `name(knob=value, ...)`, knobs at their defaults left out."""
    shown = []
    for item in dataclasses.fields(cache):
        value = getattr(cache, item.name)
        if item.name == "inner":
            shown += [] if value is None else [f"inner={describe(value)}"]
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = cache.name
    return f"{name}({', '.join(shown)})" if shown else name
