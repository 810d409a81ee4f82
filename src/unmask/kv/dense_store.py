"""The only place where keys and values live: preallocated, written in place, keys already rotated.

Source: storing rotated keys equals rotating stored ones (arXiv:2104.09864, RoPE acts on each key alone), so
positions that move by n are rotated by n more.

Letters: G key/value heads, A head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ints
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Rotary

MOVED_AT_ONCE = 64


class DenseStore:
    """`(rows, G, positions, A)` keys and values a layer.

    Behind a canvas's last position lie the keys of queries that are seen in one forward only.
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
        """Positions that there is room for."""
        return self.keys[0].shape[2]

    @property
    def tensors(self) -> Iterator[list[Tensor]]:
        """All that is kept, one tensor a layer; rows come first, positions third."""
        yield self.keys
        yield self.values

    @property
    def bytes_per_position(self) -> int:
        """Bytes of all layers."""
        return sum(_position_bytes(t) for tensors in self.tensors for t in tensors)

    @property
    def bytes_of_keys(self) -> int:
        """Bytes of all layers' keys and values."""
        return sum(_position_bytes(t) for tensors in (self.keys, self.values) for t in tensors)

    @torch.inference_mode()
    def reserve(self, positions: int, rows: int = 0) -> None:
        """Make room in all layers, or raise and leave the store as it was.

        Until the last layer has its room, the old tensors and the new ones are both there.
        """
        if positions <= self.positions and rows <= len(self.keys[0]):
            return
        wider = [
            [_wider(tensor, rows, positions) for tensor in tensors] for tensors in self.tensors
        ]
        for tensors, made in zip(self.tensors, wider, strict=True):
            tensors[:] = made

    @torch.inference_mode()
    def move_row(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of one row over another (a finished one)."""
        for tensors in self.tensors:
            for tensor in tensors:
                tensor[target, :, :positions] = tensor[source, :, :positions]

    @torch.inference_mode()
    def move_positions(self, row: int, sources: Ints, targets: Ints) -> None:
        """Move positions `sources` (ascending) of a row to `targets` (ascending), keys rotated."""
        for old, new in _in_order(sources, targets):
            shift = new[0] - old[0]
            turn = torch.tensor([shift], device=self.keys[0].device)
            rotary = Rotary(turn, self.spec, torch.float32)
            at, to = slice(old[0], old[-1] + 1), slice(new[0], new[-1] + 1)
            for tensors in self.tensors:
                for tensor in tensors:
                    moved = tensor[row, :, at].clone()
                    if tensors is self.keys:
                        moved = rotary(moved.float()).to(tensor.dtype)
                    tensor[row, :, to] = moved


def _wider(tensor: Tensor, rows: int, positions: int) -> Tensor:
    """A copy with at least so many rows and positions; zero where the tensor has none."""
    old_rows, heads, old_positions, width = tensor.shape
    made = tensor.new_zeros((max(rows, old_rows), heads, max(positions, old_positions), width))
    made[:old_rows, :, :old_positions] = tensor
    return made


def _position_bytes(tensor: Tensor) -> int:
    return tensor.shape[1] * tensor.shape[3] * tensor.element_size()


def _in_order(sources: Ints, targets: Ints) -> Iterator[tuple[Ints, Ints]]:
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
