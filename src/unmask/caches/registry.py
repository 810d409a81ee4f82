"""Find cache policies by name and build them from their knobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unmask.errors import unknown_name
from unmask.knobs import Source, field_names, merge, read_value, set_field, split_call

PACKAGE = "unmask.caches"
NO_POLICIES = {"base", "registry"}


def names() -> list[str]:
    """Every cache's name."""
    modules = iter_modules(import_module(PACKAGE).__path__)
    return sorted(item.name for item in modules if item.name not in NO_POLICIES)


@cache
def cache_class(name: str) -> Any:
    """The dataclass of a cache. Raises ConfigError for an unknown name."""
    if name not in names():
        raise unknown_name("cache", str(name), names())
    return import_module(f"{PACKAGE}.{name}").CACHE


def make_cache(name: str, args: Mapping[str, object] | None = None, compat: object = None) -> Any:
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
        typed["inner"] = bind(policy, None)
    return cls(**typed)


def bind(policy: Any, block_size: int | None) -> Any:
    """Return the policy for a model of this block size (None: full attention); `auto` is replaced."""
    stands_for = getattr(policy, "stands_for", None)
    return policy if stands_for is None else stands_for(block_size)


def cache_name(cache: Any) -> str:
    """The name of a policy."""
    return str(type(cache).__module__.rpartition(".")[2])


def describe(cache: Any) -> str:
    """A policy as `name(knob=value, ...)`, knobs at their defaults left out."""
    shown = []
    for item in dataclasses.fields(cache):
        value = getattr(cache, item.name)
        if item.name == "inner":
            shown += [] if value is None else [f"inner={describe(value)}"]
        elif value != item.default:
            shown.append(f"{item.name}={value}")
    name = cache_name(cache)
    return f"{name}({', '.join(shown)})" if shown else name
