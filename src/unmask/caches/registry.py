"""Find cache policies by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from unmask.caches.base import AnyCache
from unmask.errors import unknown_name
from unmask.knobs import Source, field_names, merge, read_value, set_field, split_call

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
    name: str, args: Mapping[str, object] | None = None, compat: object = None
) -> AnyCache:
    """Build a cache policy from its name and knobs, e.g. `dllm(kp=50, kr=7)` or `dllm` and `args`.

    `compat`, if not None, holds for a policy that has such a knob unless it is among the knobs. `auto`
    stays as it is (see `bind`). Raises ConfigError for an unknown name or knob, and for a value that is not
    allowed.
    """
    name, inside = split_call(name)
    merged = merge(Source(inside), Source(args or {}))
    knobs = {key: value.value for key, value in merged.items()}
    cls = cache_class(name)
    own = field_names(cls)
    if compat is not None and "compat" in own:
        knobs.setdefault("compat", compat)
    theirs = {key: value for key, value in knobs.items() if key not in own}
    inner = read_value(knobs.get("inner")) if "inner" in own else None
    if theirs and inner is None:
        raise unknown_name(f"knob for cache {name!r}:", next(iter(theirs)), own)
    typed = {key: set_field(cls, key, knobs[key]) for key in knobs if key in own - {"inner"}}
    if "inner" in own:
        policy = None if inner is None else make_cache(str(inner), theirs, compat)
        typed["inner"] = None if policy is None else bind(policy, None)
    build: Callable[..., AnyCache] = cls
    return build(**typed)


def bind(policy: AnyCache, block_size: int | None) -> AnyCache:
    """Return the policy for a model of this block size (None: full attention); `auto` is replaced."""
    other = policy.stands_for(block_size)
    return policy if other is None else make_cache(other)


def describe(cache: AnyCache) -> str:
    """Format a policy as `name(knob=value, ...)` without knobs at their defaults."""
    shown = []
    for item in dataclasses.fields(cache):
        value = getattr(cache, item.name)
        if item.name == "inner":
            shown += [] if value is None else [f"inner={describe(value)}"]
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = cache.name
    return f"{name}({', '.join(shown)})" if shown else name
