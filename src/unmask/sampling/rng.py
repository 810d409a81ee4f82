"""Counter-based random numbers: functions of (seed, forward, position identity, token id) alone.

A sample is therefore independent of the batch, the cache, the device and the order of requests.

Letters: N rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unmask.canvas import Floats, Ints

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15


def _mix_host(x: np.ndarray) -> np.ndarray:
    """Apply splitmix64's finalizer to uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def row_keys(seed: int | np.ndarray, forward: int | Ints, uids: Ints) -> np.ndarray:
    """Return one uint64 key per position; `uids` are the identities of the positions.

    `seed` (uint64 in an array) and `forward` are those of all positions, or arrays with one for each.
    """
    with np.errstate(over="ignore"):
        key = np.uint64(seed & (2**64 - 1)) if isinstance(seed, int) else seed
        for part in (np.broadcast_to(forward, uids.shape), uids):
            key = _mix_host(key * np.uint64(_GOLDEN) + part.astype(np.uint64) + np.uint64(1))
    return key


def uniform(keys: np.ndarray) -> Floats:
    """Return one float64 number in [0, 1) per key."""
    bits = _mix_host(keys ^ np.uint64(_GOLDEN)) >> np.uint64(11)
    numbers: Floats = bits.astype(np.float64) * 2.0**-53
    return numbers


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix_device(x: Tensor) -> Tensor:
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1]), (31, None)):
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        if factor is not None:
            x = x * _signed(factor)
    return x


def gumbel(keys_N: Tensor, token_ids_V: Tensor) -> Tensor:
    """Return float64 Gumbel noise `(N, V)`; each number depends on its int64 key and token id alone."""
    token = (token_ids_V.to(keys_N.device) + 1) * _signed(_GOLDEN)
    bits = (_mix_device(keys_N[:, None] + token) >> 11) & ((1 << 53) - 1)
    u = (bits.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(u))
