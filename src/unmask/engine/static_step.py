"""Forwards of fixed shapes, captured as CUDA graphs: one launch of the host in place of hundreds.

A forward whose rows all compute a block of dense stored canvases runs in the smallest bucket that holds
them (`attention/static.py`); all others run packed. The first forward of a bucket is run a few times and
captured, which takes part of a second. Without a CUDA device nothing is captured, and no row runs static,
unless a test asks for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.attention.packed import RowMeta
from unmask.attention.static import Bucket, StaticAttention, bucket_of, numbers_of
from unmask.canvas import Ints
from unmask.engine.kv_dense import DenseKV
from unmask.models.transformer import Transformer
from unmask.sampling.transfer import upload

WARM_UP = 2
"""Runs before a capture: the libraries below choose kernels and allocate in the first ones."""

Step: TypeAlias = Callable[[Tensor], Tensor]
"""From the numbers of a forward, int64 on the device, to the states `(B * n, D)`."""
Capture: TypeAlias = Callable[[Step, Tensor], Step]
"""Returns a step that does the same in fewer launches; the second argument is an example of its input."""


class StaticForwards:
    """The forwards of fixed shapes of a model over a dense store; `capture` makes each bucket's step."""

    def __init__(self, model: Transformer, dense: DenseKV, capture: Capture) -> None:
        self.model, self.dense, self.capture = model, dense, capture
        self._steps: dict[Bucket, Step] = {}
        self._tensors: tuple[int, ...] = ()

    def bucket_of(self, metas: Sequence[RowMeta]) -> Bucket | None:
        """Return the bucket of a forward of these rows; None if they have to run packed."""
        return bucket_of(metas, len(self.dense.rows)) if metas else None

    def run(self, bucket: Bucket, metas: Sequence[RowMeta], ids: Sequence[Ints]) -> Tensor:
        """Return the states `(B * n, D)`, those of row r from `r * n` on; the next run overwrites them.

        `ids[i]` are the tokens of the queries of row `metas[i]`.
        """
        store = self.dense.store
        store.reserve(0, bucket.rows)
        numbers = upload(numbers_of(bucket, metas, ids, store.positions - 1), self.model.device)
        self._forget_steps_of_other_tensors()
        if bucket not in self._steps:
            self._steps[bucket] = self.capture(self._step_of(bucket), numbers)
        return self._steps[bucket](numbers)

    def _forget_steps_of_other_tensors(self) -> None:
        """Drop all steps when the store has grown, since they write into its former tensors."""
        store = self.dense.store
        tensors = (id(store), *(id(tensor) for tensor in (*store.keys, *store.values)))
        if tensors != self._tensors:
            self._steps.clear()
            self._tensors = tensors

    def _step_of(self, bucket: Bucket) -> Step:
        """Return the forward of a bucket, of tensors alone."""
        model, store, n = self.model, self.dense.store, bucket.queries

        def step(numbers: Tensor) -> Tensor:
            ids, positions, lengths = numbers[:, :n], numbers[:, n : 2 * n], numbers[:, 2 * n]
            backend = StaticAttention(store, bucket, positions, lengths, model.dtype)
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
    numbers = example.clone()
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
        numbers.copy_(new)
        graph.replay()
        return states

    return replay
