"""Forwards of fixed shapes, captured as CUDA graphs: one launch of the host in place of hundreds.

A forward whose rows all compute a block of stored canvases, all in dense rows or all in pages, runs in the
smallest bucket that holds them (`attention/static.py`); all others run packed. The first forward of a
bucket is run a few times and captured, which takes part of a second. Without a CUDA device nothing is
captured, and no row runs static, unless a test asks for it.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from operator import is_not
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unmask.attention.packed import RowMeta
from unmask.attention.static import (
    Bucket,
    DenseKeys,
    PagedKeys,
    StaticAttention,
    StaticKeys,
    bucket_of,
    numbers_of,
    pages_of,
)
from unmask.canvas import Ints
from unmask.engine.kv_dense import DenseKV
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore
from unmask.models.transformer import Transformer
from unmask.sampling.transfer import upload

WARM_UP = 2
"""Runs before a capture: the libraries below choose kernels and allocate in the first ones."""

Step: TypeAlias = Callable[[Tensor], Tensor]
"""From the numbers of a forward, int64 on the device, to the states `(B * n, D)`."""
Capture: TypeAlias = Callable[[Step, Tensor], Step]
"""Returns a step that does the same in fewer launches; the second argument is an example of its input."""


class StaticRows(Protocol):
    """The rows of one kind of store in forwards of fixed shapes."""

    @property
    def store(self) -> DenseStore | PagedStore:
        """The store of the keys and values."""

    def bucket_of(self, metas: Sequence[RowMeta]) -> Bucket | None:
        """Return the bucket of a forward of these rows; None if they have to run packed."""

    def places(self, metas: Sequence[RowMeta]) -> Sequence[int]:
        """Return the row of the bucket that computes each row."""

    def numbers(self, bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints]) -> np.ndarray:
        """Return `numbers_of`, followed by the columns that `keys` needs."""

    def keys(self, bucket: Bucket, numbers: Tensor) -> StaticKeys:
        """Return the keys and values of a bucket's rows."""


class DenseRows:
    """Rows of a dense store: those of a bucket are the store's, from the first one on."""

    def __init__(self, dense: DenseKV) -> None:
        self.dense = dense

    @property
    def store(self) -> DenseStore:
        """The present store."""
        return self.dense.store

    def bucket_of(self, metas: Sequence[RowMeta]) -> Bucket | None:
        """Return a bucket of all admitted rows, since their order is fixed."""
        return bucket_of(metas, len(self.dense.rows))

    def places(self, metas: Sequence[RowMeta]) -> Sequence[int]:
        """Return the rows of the store."""
        return [meta.row for meta in metas]

    def numbers(self, bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints]) -> np.ndarray:
        """Return `numbers_of`; the store grows to the rows of the bucket."""
        self.store.reserve(0, bucket.rows)
        return numbers_of(bucket, self.places(metas), metas, ids, self.store.positions - 1)

    def keys(self, bucket: Bucket, numbers: Tensor) -> DenseKeys:
        """Return the keys and values of the store's first rows."""
        n = bucket.queries
        return DenseKeys(self.store, bucket, numbers[:, n : 2 * n])


class PagedRows:
    """Rows in pages, in any order."""

    def __init__(self, store: PagedStore) -> None:
        self.store = store

    def bucket_of(self, metas: Sequence[RowMeta]) -> Bucket | None:
        """Return a bucket of the rows that compute."""
        return bucket_of(metas, len(metas), in_pages=True)

    def places(self, metas: Sequence[RowMeta]) -> Sequence[int]:
        """Return the order of the rows."""
        return range(len(metas))

    def numbers(self, bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints]) -> np.ndarray:
        """Return `numbers_of` and `pages_of`."""
        own = numbers_of(bucket, self.places(metas), metas, ids)
        return np.concatenate((own, pages_of(bucket, metas, self.store.size)), axis=1)

    def keys(self, bucket: Bucket, numbers: Tensor) -> PagedKeys:
        """Return the keys and values in the rows' pages."""
        return PagedKeys(self.store, bucket, numbers[:, 2 * bucket.queries + 1 :])


class StaticForwards:
    """The forwards of fixed shapes of a model over one store; `capture` makes each bucket's step."""

    def __init__(self, model: Transformer, rows: StaticRows, capture: Capture) -> None:
        self.model, self.rows, self.capture = model, rows, capture
        self._steps: dict[Bucket, Step] = {}
        self._tensors: list[weakref.ref[Tensor]] = []

    def bucket_of(self, metas: Sequence[RowMeta]) -> Bucket | None:
        """Return the bucket of a forward of these rows; None if they have to run packed."""
        return self.rows.bucket_of(metas) if metas else None

    def run(
        self, bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints]
    ) -> tuple[Tensor, list[int]]:
        """Return the states `(B * n, D)`, which the next run overwrites, and the first one of each row.

        `ids[i]` are the tokens of the queries of row `metas[i]`.
        """
        numbers = upload(self.rows.numbers(bucket, metas, ids), self.model.device)
        self._forget_steps_of_other_tensors()
        if bucket not in self._steps:
            self._steps[bucket] = self.capture(self._step_of(bucket), numbers)
        starts = [place * bucket.queries for place in self.rows.places(metas)]
        return self._steps[bucket](numbers), starts

    def _forget_steps_of_other_tensors(self) -> None:
        """Drop all steps when the store has grown, since they write into its former tensors."""
        store = self.rows.store
        tensors = [*store.keys, *store.values]
        former = [reference() for reference in self._tensors]  # an `id` may return, a reference not
        if len(former) != len(tensors) or any(map(is_not, former, tensors)):
            self._steps.clear()
            self._tensors = [weakref.ref(tensor) for tensor in tensors]

    def _step_of(self, bucket: Bucket) -> Step:
        """Return the forward of a bucket, of tensors alone."""
        model, rows, n = self.model, self.rows, bucket.queries

        def step(numbers: Tensor) -> Tensor:
            ids, positions, lengths = numbers[:, :n], numbers[:, n : 2 * n], numbers[:, 2 * n]
            keys = rows.keys(bucket, numbers)
            backend = StaticAttention(keys, positions, lengths, model.spec, model.dtype)
            return model.hidden(ids.flatten(), positions.flatten(), backend=backend)

        return step


def captured(step: Step, example: Tensor) -> Step:
    """Return a step that replays a CUDA graph; the plain step, with a warning, if it cannot be captured."""
    try:
        return _captured(step, example)
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph: {error}; decoding without", RuntimeWarning, stacklevel=2)
        return step


def _captured(step: Step, example: Tensor) -> Step:
    numbers, device = example.clone(), example.device
    with torch.cuda.device(device):  # streams and graphs are those of the present card
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step(numbers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = step(numbers)

    def replay(new: Tensor) -> Tensor:
        with torch.cuda.device(device):
            numbers.copy_(new)
            graph.replay()
        return states

    return replay
