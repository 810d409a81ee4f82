"""Keys and values in dense rows: preallocated, written in place, keys already rotated.

RoPE rotates each key by its position alone (arXiv:2104.09864), so the key of a position that moves by n is
rotated by n more.

Letters: G key/value heads, A head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ints
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Rotary

MOVED_AT_ONCE = 64


class DenseStore:
    """Keys and values `(rows, G, positions, A)` per layer.

    The positions after the end of a canvas hold the keys and values of shadow queries for one forward.
    """

    def __init__(
        self, spec: ModelSpec, rows: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec = spec
        shape = (rows, spec.num_kv_heads, positions, spec.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.num_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]

    @property
    def positions(self) -> int:
        """Number of positions per row."""
        return self.keys[0].shape[2]

    @property
    def tensors(self) -> Iterator[list[Tensor]]:
        """All stored tensors, as lists with one per layer; dimension 0: rows, 2: positions."""
        yield self.keys
        yield self.values

    @cached_property
    def bytes_per_position(self) -> int:
        """Bytes per position over all layers and tensors."""
        return sum(_position_bytes(t) for tensors in self.tensors for t in tensors)

    @property
    def bytes_of_keys(self) -> int:
        """Bytes per position of keys and values alone, over all layers."""
        return sum(_position_bytes(t) for tensors in (self.keys, self.values) for t in tensors)

    @torch.inference_mode()
    def reserve(self, positions: int, rows: int = 0) -> None:
        """Grow to at least these sizes; on an error (out of memory) the store stays as it was.

        The old and the new tensors of all layers exist together until the last one is copied.
        """
        if positions <= self.positions and rows <= len(self.keys[0]):
            return
        grown = [[_grown(each, rows, positions) for each in tensors] for tensors in self.tensors]
        for tensors, new in zip(self.tensors, grown, strict=True):
            tensors[:] = new

    @torch.inference_mode()
    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` positions of row `source` to row `target`."""
        for tensors in self.tensors:
            for tensor in tensors:
                tensor[target, :, :positions] = tensor[source, :, :positions]

    @torch.inference_mode()
    def move_positions(self, row: int, sources: Ints, targets: Ints) -> None:
        """Move positions `sources` of a row to `targets` (both ascending) and rotate their keys."""
        for old, new in _moves(sources, targets):
            distance = torch.tensor([new[0] - old[0]], device=self.keys[0].device)
            rotary = Rotary(distance, self.spec, torch.float32)
            at, to = slice(old[0], old[-1] + 1), slice(new[0], new[-1] + 1)
            for tensors in self.tensors:
                for tensor in tensors:
                    moved = tensor[row, :, at].clone()
                    if tensors is self.keys:
                        moved = rotary(moved.float()).to(tensor.dtype)
                    tensor[row, :, to] = moved


def _grown(tensor: Tensor, rows: int, positions: int) -> Tensor:
    """Return a copy with at least these sizes, padded with zeros."""
    old_rows, heads, old_positions, width = tensor.shape
    new = tensor.new_zeros((max(rows, old_rows), heads, max(positions, old_positions), width))
    new[:old_rows, :, :old_positions] = tensor
    return new


def _position_bytes(tensor: Tensor) -> int:
    return tensor.shape[1] * tensor.shape[3] * tensor.element_size()


def _moves(sources: Ints, targets: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield pieces that move by one distance, ordered so that none overwrites the source of a later one."""
    moves = targets - sources
    runs = np.split(
        np.arange(len(sources)), np.flatnonzero(np.diff(moves) | (np.diff(sources) - 1)) + 1
    )
    for leftwards in (True, False):
        ordered = runs if leftwards else runs[::-1]
        for run in ordered:
            if len(run) == 0 or moves[run[0]] == 0 or (moves[run[0]] < 0) != leftwards:
                continue
            pieces = [run[i : i + MOVED_AT_ONCE] for i in range(0, len(run), MOVED_AT_ONCE)]
            for piece in pieces if leftwards else pieces[::-1]:
                yield sources[piece], targets[piece]
