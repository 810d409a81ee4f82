"""The cache that fits the model: `block_causal` where it can be exact, else `vicinity`.

Source: our measurement (docs/log.md, "What caches save"): of the approximate caches, vicinity
differs least from no cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.caches.base import Alias


@dataclass(frozen=True)
class Auto(Alias):
    """A name for the policy that suits the model."""

    def stands_for(self, block_size: int | None) -> str:
        """Return the policy for a model with this block size."""
        return "vicinity" if block_size is None else "block_causal"


CACHE = Auto
