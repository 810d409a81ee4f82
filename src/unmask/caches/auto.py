"""The cache that fits the model: `block_causal` where it can be exact, else `vicinity`.

Source: our measurement (docs/log.md, "What caches save"): vicinity strays least from no cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmask.caches.block_causal import BlockCausal
from unmask.caches.vicinity import Vicinity


@dataclass(frozen=True)
class Auto:
    """Stands for another policy."""

    def stands_for(self, block_size: int | None) -> Any:
        """The policy for a model with this block size."""
        return Vicinity() if block_size is None else BlockCausal()


CACHE = Auto
