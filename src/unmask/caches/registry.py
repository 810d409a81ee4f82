"""Registry of the cache policies: find them by name, and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache

from unmask.caches.base import AnyCache, CachePolicy
from unmask.errors import unknown_name
from unmask.knobs import Source, field_names, field_values, merge, read_value, set_field, split_call
from unmask.own_code import Workshop
from unmask.plugins import Registry, load_class

PACKAGE = "unmask.caches"


@cache
def _load(name: str) -> type[AnyCache]:
    """Import a cache's class. Raises PluginError for a file that cannot be used."""
    cls: type[AnyCache] = load_class(PACKAGE, name, "CACHE", CachePolicy)  # type: ignore[type-abstract]
    return cls


REGISTRY: Registry[type[AnyCache]] = Registry(PACKAGE, ("base", "registry"), "cache", _load)
names, broken, served_names = REGISTRY.names, REGISTRY.broken, REGISTRY.served_names
WORKSHOP = Workshop(REGISTRY, CachePolicy, "CACHE", "unmask.caches")  # type: ignore[type-abstract]
_released = cache(REGISTRY.get)


def cache_class(name: str) -> type[AnyCache]:
    """Return a policy's class. Raises ConfigError for an unknown name."""
    return REGISTRY.own.get(name) or _released(name)


def make_cache(
    name: str, args: Mapping[str, object] | None = None, compat: object = None
) -> AnyCache:
    """Build a cache policy from its name and knobs, e.g. `dllm(kp=50, kr=7)` or `dllm` and `args`.

    `compat`, if not None, is the default of the policy's knob `compat`, if it has one. `auto` is resolved
    later (see `bind`). Raises ConfigError for an unknown name or knob, and for a value that is not allowed.
    """
    name, inside = split_call(name)
    merged = merge(Source(inside), Source(args or {}))
    knobs = {key: value.value for key, value in merged.items()}
    cls = cache_class(name)
    own = field_names(cls)
    if compat is not None and "compat" in own:
        knobs.setdefault("compat", compat)
    inner_knobs = {key: value for key, value in knobs.items() if key not in own}
    inner = read_value(knobs.get("inner")) if "inner" in own else None
    if inner_knobs and inner is None:
        raise unknown_name(f"knob for cache {name!r}:", next(iter(inner_knobs)), own)
    typed = {key: set_field(cls, key, knobs[key]) for key in knobs if key in own - {"inner"}}
    if "inner" in own:
        policy = None if inner is None else make_cache(str(inner), inner_knobs, compat)
        typed["inner"] = None if policy is None else bind(policy, None)
    build: Callable[..., AnyCache] = cls
    return build(**typed)


def bind(policy: AnyCache, block_size: int | None) -> AnyCache:
    """Return the policy for a model of this block size (None: full attention), with `auto` resolved."""
    other = policy.stands_for(block_size)
    return policy if other is None else make_cache(other)


def describe(cache: AnyCache) -> str:
    """Format a policy as `name(knob=value, ...)` without knobs at their defaults."""
    values = field_values(cache)
    inner = values.get("inner")
    if isinstance(inner, CachePolicy):
        values["inner"] = describe(inner)
    knobs = [
        f"{field.name}={values[field.name]}"
        for field in dataclasses.fields(cache)
        if values[field.name] != field.default
    ]
    return f"{cache.name}({', '.join(knobs)})" if knobs else cache.name
