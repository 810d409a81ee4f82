"""Key/value cache policies: one policy, one file; the file's name is the cache's name.

Import the pieces of a policy from here (`CachePlan`, `PerBlock`, `knob`, ...). To add one, write the file
and define `CACHE` in it: docs/how-to/add-a-cache.md.
"""

from __future__ import annotations

from unmask.caches.base import (
    Alias,
    AnyCache,
    CachePlan,
    CachePolicy,
    CacheProgress,
    Layers,
    Observation,
    PerBlock,
)
from unmask.caches.registry import (
    WORKSHOP,
    bind,
    broken,
    cache_class,
    describe,
    make_cache,
    names,
    served_names,
)
from unmask.knobs import knob

__all__ = [
    "WORKSHOP",
    "Alias",
    "AnyCache",
    "CachePolicy",
    "Layers",
    "PerBlock",
    "CachePlan",
    "CacheProgress",
    "Observation",
    "bind",
    "broken",
    "cache_class",
    "describe",
    "knob",
    "make_cache",
    "names",
    "served_names",
]
