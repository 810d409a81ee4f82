"""The exact cache of block-causal models: a block's keys and values are final once the block is.

Source: block diffusion, arXiv:2503.09573; LLaDA2.0, arXiv:2512.15745. Blocks are the model's, counted from
the first prompt token. A forward computes the blocks that are not final yet, up to the last block with an
asked position. So the last forward of a block is also the first one of the next, and positions further to
the right, to which no query attends, are not computed. Exact for every decoder: an edited block is not
final any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask.caches.base import CachePlan, CachePolicy, Observation
from unmask.canvas import Ask, Canvas, Ints, ModelFacts
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FinalPrefix:
    """The model's block size, and the number of leading positions that are final."""

    block_size: int
    num_final: int = 0


@dataclass(frozen=True)
class BlockCausal(CachePolicy[FinalPrefix]):
    """A cache that only grows, except after revisions."""

    exact: ClassVar[bool] = True
    pageable: ClassVar[bool] = True

    def start(self, canvas: Canvas, facts: ModelFacts) -> FinalPrefix:
        """Begin with no final position. Raises ConfigError for a model that is not block-causal."""
        if facts.block_size is None:
            raise ConfigError(
                "cache 'block_causal' needs a block-causal model; in this one every position attends to "
                "every other, so no key is ever final: use vicinity, dual, or auto"
            )
        return FinalPrefix(facts.block_size)

    def plan(
        self, canvas: Canvas, ask: Ask, rows: Ints, state: FinalPrefix
    ) -> tuple[CachePlan, FinalPrefix]:
        """Plan the blocks from the first that is not final to the last with an asked position."""
        size = state.block_size
        asked = max(int(rows.max(initial=0)), int(ask.shadows.max(initial=0)))
        end = min(max((asked // size + 1) * size, state.num_final), len(canvas))
        queries = np.union1d(np.arange(min(state.num_final, end), end), rows)
        final = max(state.num_final, min(complete_positions(canvas), end) // size * size)
        plan = CachePlan(queries, num_stored=state.num_final, num_final=final, end=end)
        return plan, replace(state, num_final=final)

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: FinalPrefix
    ) -> FinalPrefix:
        """Mark the blocks from the first changed, moved or deleted position on as not final."""
        common = min(len(before), len(after))
        changed = (
            (before.uid[:common] != after.uid[:common])
            | (before.tokens[:common] != after.tokens[:common])
            | (before.open[:common] != after.open[:common])
        )
        first = int(changed.argmax()) if changed.any() else common
        first = first // state.block_size * state.block_size
        return replace(state, num_final=min(state.num_final, first))

    def resume(self, num_positions: int, state: FinalPrefix) -> FinalPrefix:
        """Mark the completely computed blocks as final."""
        return replace(state, num_final=num_positions // state.block_size * state.block_size)

    def prefill(
        self, canvas: Canvas, state: FinalPrefix, max_positions: int
    ) -> tuple[CachePlan, FinalPrefix] | None:
        """Plan the next whole blocks of decided positions; None if there are none."""
        size = state.block_size
        end = state.num_final + max(1, max_positions // size) * size
        if end > complete_positions(canvas):
            return None
        plan = CachePlan(
            np.arange(state.num_final, end), num_stored=state.num_final, num_final=end, end=end
        )
        return plan, replace(state, num_final=end)


def complete_positions(canvas: Canvas) -> int:
    """Return the number of positions before the first open one."""
    open_ = canvas.open_positions()
    return int(open_[0]) if len(open_) else len(canvas)


CACHE = BlockCausal
