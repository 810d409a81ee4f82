"""The assignment of a dense store's rows to sequences, and their size."""

from __future__ import annotations

from unmask.canvas import Ints
from unmask.distributed.tensor_parallel import new_dense_store
from unmask.engine.sequence import SequenceState
from unmask.kv.dense_store import DenseStore
from unmask.models.transformer import Transformer

Branch = tuple[SequenceState, bool]
"""A sequence, and whether this row includes the prompt (the other row, for guidance, masks it)."""


class DenseKV:
    """Dense rows of keys and values, one per branch of a sequence, all of equal width.

    With `layered`, the store has the layers' outputs too; `num_spare` positions are beyond all canvases. It
    starts with `rows` rows of `positions` positions, grows with the admitted sequences and shrinks to that
    size when the last one is released.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        positions: int,
        *,
        layered: bool,
        max_bytes: int | None = None,
        num_spare: int = 0,
    ) -> None:
        self.max_bytes, self.num_spare = max_bytes, num_spare
        self._min_shape = (rows, positions + num_spare if rows else 0)
        self.model, self.layered = model, layered
        self.store = self._new()
        self.rows: list[Branch] = []
        self.widths: list[int] = []
        self._row_of: dict[tuple[int, bool], int] = {}
        """The row of each branch, by the `id` of its sequence."""

    def _new(self) -> DenseStore:
        return new_dense_store(self.model, *self._min_shape, self.layered)

    def bytes_with(self, rows: int, positions: int) -> int:
        """Return the size in bytes after admitting `rows` more rows of `positions` positions."""
        num_rows = max(len(self.rows) + rows, self._min_shape[0])
        width = max(max(self.widths, default=0), positions) + self.num_spare
        width = max(width, self._min_shape[1])
        return num_rows * width * self.store.bytes_per_position

    def admit(self, sequence: SequenceState, branches: list[Branch]) -> None:
        """Assign a row to each branch of a sequence; the store grows as needed."""
        positions = sequence.request.max_positions
        for i, (_, sees_prompt) in enumerate(branches, len(self.rows)):
            self._row_of[id(sequence), sees_prompt] = i
        self.rows.extend(branches)
        self.widths.extend([positions] * len(branches))
        self.store.reserve(max(self.widths) + self.num_spare, self._rows_to_reserve())

    def _rows_to_reserve(self) -> int:
        """Return the number of rows to grow to: doubled within the budget, so that few admissions copy."""
        current, needed = len(self.store.keys[0]), len(self.rows)
        if needed <= current:
            return current
        row_bytes = max(self.store.positions, *self.widths) * self.store.bytes_per_position
        most = 2 * current
        if self.max_bytes is not None:
            most = min(most, self.max_bytes // row_bytes)
        return max(needed, most)

    def release(self, sequence: SequenceState) -> None:
        """Free a sequence's rows; the last rows move into the gaps."""
        for row in sorted(self._own_rows(sequence), reverse=True):
            sees_prompt = self.rows[row][1]
            last, width = self.rows.pop(), self.widths.pop()
            if row < len(self.rows):
                self.rows[row], self.widths[row] = last, width
                self._row_of[id(last[0]), last[1]] = row
                self.store.move_row(len(self.rows), row, len(last[0].canvas))
            del self._row_of[id(sequence), sees_prompt]
        if not self.rows and tuple(self.store.keys[0].shape[::2]) != self._min_shape:
            self.store = self._new()

    def row(self, sequence: SequenceState, sees_prompt: bool) -> int:
        """Return the row of one branch of a sequence."""
        return self._row_of[id(sequence), sees_prompt]

    def _own_rows(self, sequence: SequenceState) -> list[int]:
        """Return the rows of a sequence's branches."""
        keys = ((id(sequence), sees_prompt) for sees_prompt in (True, False))
        return [self._row_of[key] for key in keys if key in self._row_of]

    def move(self, sequence: SequenceState, sources: Ints, targets: Ints) -> None:
        """Move the stored positions `sources` of a sequence to `targets`, in all of its rows."""
        self.store.reserve(len(sequence.canvas))
        for row in self._own_rows(sequence):
            self.store.move_positions(row, sources, targets)
