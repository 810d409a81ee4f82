"""Decode with a method of your own: the `count` most confident positions of every block and forward."""

from dataclasses import dataclass

import numpy as np

import unmask
from unmask.canvas import Ints, Reading
from unmask.decoders import Block, Blockwise, Scores, knob


@dataclass(frozen=True)
class TopCount(Blockwise):
    """Commit the most confident positions of a block, so many in a forward."""

    count: int = knob(2, "positions committed in a forward; 1: one at a time")

    def select(self, reading: Reading, scores: Scores, block: Block) -> Ints:
        """Return the indices of the positions to commit."""
        return np.argsort(-scores.rank, kind="stable")[: self.count]


llm = unmask.LLM("demo")
(out,) = llm.generate("Sudoku\n0200\n4302\n3401\n0004", TopCount(count=4), gen_length=32)
print(out.text)
print(out.num_forwards, "forwards")
