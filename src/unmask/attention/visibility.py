"""Attention masks of rows with canvases of different lengths, without an operation for each row.

A canvas's own queries see no shadow query's key, so either kind of query has a mask of its own.

Letters: b rows, n queries of each, s shadow queries of each, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Ints
from unmask.sampling.transfer import upload


def canvas_mask(lengths_b: Tensor, keys_K: Tensor) -> Tensor:
    """Return which keys, given by position, are inside each row's canvas, bool `(b, 1, 1, K)`."""
    return (keys_K < lengths_b[:, None])[:, None, None]


def block_mask(positions_bn: Tensor, keys_K: Tensor, block_size: int) -> Tensor:
    """Return which keys, given by position, are in blocks up to a query's, bool `(b, 1, n, K)`."""
    return (keys_K // block_size <= positions_bn[:, :, None] // block_size)[:, None]


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """A row's canvas length and its shadow queries (at least one) as in `RowMeta`; keys from `start` on."""

    length: int
    start: int
    shadows: Ints
    position_ids: Ints
    attend: bool


def shadow_mask(
    rows: Sequence[ShadowRow], num_keys: int, block_size: int | None, device: torch.device
) -> Tensor:
    """Return the keys that shadow queries see, bool `(b, 1, s, K)`; a row with fewer repeats its last.

    They see the canvas but for the position that each one shadows, with `block_size` only blocks up to
    its own; of the row's shadow queries they see all or, without `attend`, themselves.
    """
    most = max(len(row.shadows) for row in rows)
    numbers = [np.minimum(np.arange(most), len(row.shadows) - 1) for row in rows]
    pairs = list(zip(rows, numbers, strict=True))
    shadows = [row.shadows[own] for row, own in pairs]
    position_ids = [row.position_ids[own] for row, own in pairs]
    own, hidden, ids = upload(np.stack((numbers, shadows, position_ids)), device)[..., None]
    sizes = [(row.length, row.start, len(row.shadows), row.attend) for row in rows]
    lengths, starts, counts, attend = upload(np.array(sizes, dtype=np.int64).T, device)[
        ..., None, None
    ]
    keys = torch.arange(num_keys, device=device)
    visible = (keys < lengths) & (keys != hidden)
    if block_size is not None:
        visible &= keys // block_size <= ids // block_size
    behind = keys - starts
    among = (behind >= 0) & (behind < counts) & ((behind == own) | (attend > 0))
    seen: Tensor = (visible | among)[:, None]
    return seen
