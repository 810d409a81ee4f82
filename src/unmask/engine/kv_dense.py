"""The rows of a dense store: who has which, and how many bytes they take."""

from __future__ import annotations

from unmask.canvas import Ints
from unmask.distributed.tensor_parallel import new_dense_store
from unmask.engine.sequence import SequenceState
from unmask.kv.dense_store import DenseStore
from unmask.models.transformer import Transformer

Branch = tuple[SequenceState, bool]
"""A sequence, and whether this row of it sees the prompt."""


class DenseKV:
    """Keys and values of sequences whose cache depends on the whole canvas: a row each, of equal width.

    `layered`: the layers' outputs are kept too. The store begins with `rows` and `positions` and grows with
    what is admitted; once the last row is gone, it is what it was at the beginning.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        positions: int,
        *,
        layered: bool,
        max_bytes: int | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._begin, self.model, self.layered = (rows, positions), model, layered
        self.store = self._new()
        self.rows: list[Branch] = []
        self.widths: list[int] = []

    def _new(self) -> DenseStore:
        return new_dense_store(self.model, *self._begin, self.layered)

    def bytes_with(self, rows: int, positions: int) -> int:
        """Bytes when `rows` more of `positions` positions are admitted."""
        have = (len(self.rows), max(self.widths, default=0))
        wanted = max(have[0] + rows, self._begin[0]) * max(have[1], positions, self._begin[1])
        return wanted * self.store.bytes_per_position

    def admit(self, sequence: SequenceState, branches: list[Branch]) -> None:
        """Give a sequence its rows."""
        positions = sequence.request.max_positions
        self.rows.extend(branches)
        self.widths.extend([positions] * len(branches))
        self.store.reserve(max(self.widths), self._rows_to_reserve())

    def _rows_to_reserve(self) -> int:
        """Twice the rows there were when more are needed, so that not every arrival copies all of them."""
        have, needed = len(self.store.keys[0]), len(self.rows)
        if needed <= have:
            return have
        row_bytes = max(self.store.positions, *self.widths) * self.store.bytes_per_position
        most = 2 * have if self.max_bytes is None else min(2 * have, self.max_bytes // row_bytes)
        return max(needed, most)

    def release(self, sequence: SequenceState) -> None:
        """Take a sequence's rows back; the last rows move into the gap."""
        for row in range(len(self.rows) - 1, -1, -1):
            if self.rows[row][0] is sequence:
                last, width = self.rows.pop(), self.widths.pop()
                if row < len(self.rows):
                    self.rows[row], self.widths[row] = last, width
                    self.store.move_row(len(self.rows), row, len(last[0].canvas))
        if not self.rows and tuple(self.store.keys[0].shape[::2]) != self._begin:
            self.store = self._new()

    def row(self, sequence: SequenceState, sees_prompt: bool) -> int:
        """The row of one of its branches."""
        return next(
            i for i, (s, seen) in enumerate(self.rows) if s is sequence and seen == sees_prompt
        )

    def move(self, sequence: SequenceState, sources: Ints, targets: Ints) -> None:
        """Move what is kept of a sequence's positions `sources` to `targets`."""
        self.store.reserve(len(sequence.canvas))
        for row, (other, _) in enumerate(self.rows):
            if other is sequence:
                self.store.move_positions(row, sources, targets)
