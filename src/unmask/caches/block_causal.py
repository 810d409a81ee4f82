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

from unmask.caches import Plan, Seen
from unmask.caches._slots import edited
from unmask.canvas import Ask, Canvas, Ints, ModelFacts
from unmask.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Final:
    """The model's block size, and how many slots from the left are final."""

    block_size: int
    num_final: int = 0


@dataclass(frozen=True)
class BlockCausal:
    """Append-only, but for revisions."""

    stores: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def start(self, canvas: Canvas, facts: ModelFacts) -> Final:
        """Nothing is final. Raises ConfigError for a model that is not block-causal."""
        if facts.block_size is None:
            raise ConfigError(
                "cache 'block_causal' is exact for block-causal models; in this one every slot sees every "
                "other, so no key is ever final: use vicinity, dual, or auto"
            )
        return Final(facts.block_size)

    def plan(self, canvas: Canvas, ask: Ask, rows: Ints, state: Final) -> tuple[Plan, Final]:
        """Blocks from the first that is not final to the last one asked for."""
        size = state.block_size
        asked = max(int(rows.max(initial=0)), int(ask.twins.max(initial=0)))
        end = min((asked // size + 1) * size, len(canvas))
        queries = np.union1d(np.arange(min(state.num_final, end), end), rows)
        open_ = canvas.open_slots()
        complete = int(open_[0]) if len(open_) else len(canvas)
        final = max(state.num_final, min(complete, end) // size * size)
        return Plan(queries), replace(state, num_final=final)

    def observe(self, before: Canvas, after: Canvas, seen: Seen, state: Final) -> Final:
        """Blocks from the first changed one on are not final."""
        changed = np.flatnonzero(edited(before, after))
        first = int(changed[0]) if len(changed) else len(after)
        first = min(first, len(before), len(after)) // state.block_size * state.block_size
        return replace(state, num_final=min(state.num_final, first))


CACHE = BlockCausal
