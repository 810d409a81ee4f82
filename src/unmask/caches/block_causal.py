"""The exact cache of block-causal models: a block's keys and values are final once the block is.

Source: block diffusion, arXiv:2503.09573; LLaDA2.0, arXiv:2512.15745. Blocks are the model's, counted from
the first prompt token. A forward computes the blocks that are not final yet, up to the last one asked
for, so a finished block's last forward is also the next one's first, and what lies to the right, which
nobody sees, is never computed. Exact for every decoder: an edit of a final block takes its finality back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unmask.caches.base import CachePlan, CachePolicy, Observation
from unmask.canvas import Ask, Canvas, Ints, ModelFacts
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Final:
    """The model's block size, and how many positions from the left are final."""

    block_size: int
    num_final: int = 0


@dataclass(frozen=True)
class BlockCausal(CachePolicy[Final]):
    """Append-only, but for revisions."""

    exact: ClassVar[bool] = True
    pageable: ClassVar[bool] = True

    def start(self, canvas: Canvas, facts: ModelFacts) -> Final:
        """Begin with no final position. Raises ConfigError for a model that is not block-causal."""
        if facts.block_size is None:
            raise ConfigError(
                "cache 'block_causal' is exact for block-causal models; in this one every position "
                "sees every other, so no key is ever final: use vicinity, dual, or auto"
            )
        return Final(facts.block_size)

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: Final) -> tuple[CachePlan, Final]:
        """Plan the blocks from the first that is not final to the last one asked for."""
        size = state.block_size
        asked = max(int(rows.max(initial=0)), int(ask.shadows.max(initial=0)))
        end = min(max((asked // size + 1) * size, state.num_final), len(canvas))
        queries = np.union1d(np.arange(min(state.num_final, end), end), rows)
        final = max(state.num_final, min(complete_positions(canvas), end) // size * size)
        plan = CachePlan(queries, known=state.num_final, final=final, end=end)
        return plan, replace(state, num_final=final)

    def observe(
        self, before: Canvas, after: Canvas, observation: Observation, state: Final
    ) -> Final:
        """Mark blocks from the first changed, moved or missing position on as not final."""
        common = min(len(before), len(after))
        changed = (
            (before.uid[:common] != after.uid[:common])
            | (before.tokens[:common] != after.tokens[:common])
            | (before.open[:common] != after.open[:common])
        )
        first = int(changed.argmax()) if changed.any() else common
        first = first // state.block_size * state.block_size
        return replace(state, num_final=min(state.num_final, first))

    def resume(self, num_positions: int, state: Final) -> Final:
        """Mark whole computed blocks as final."""
        return replace(state, num_final=num_positions // state.block_size * state.block_size)

    def prefill(
        self, canvas: Canvas, state: Final, max_positions: int
    ) -> tuple[CachePlan, Final] | None:
        """Plan the next whole blocks of decided positions; None if there are none."""
        size = state.block_size
        end = state.num_final + max(1, max_positions // size) * size
        if end > complete_positions(canvas):
            return None
        plan = CachePlan(np.arange(state.num_final, end), known=state.num_final, final=end, end=end)
        return plan, replace(state, num_final=end)


def complete_positions(canvas: Canvas) -> int:
    """Return the number of positions before the first open one."""
    open_ = canvas.open_positions()
    return int(open_[0]) if len(open_) else len(canvas)


CACHE = BlockCausal
