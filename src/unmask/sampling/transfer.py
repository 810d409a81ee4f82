"""Copies of small host arrays to the device of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return an array as a tensor on `device`; on the CPU it shares the array's memory.

    On CUDA the copy is queued from pinned memory, so that the host does not wait: a copy from pageable
    memory synchronizes the stream.
    """
    host = torch.from_numpy(array)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def upload_index(rows: Sequence[int], device: torch.device) -> Tensor:
    """Return indices as an int64 tensor; a list as an index would be a copy that the host waits for."""
    return upload(np.array(rows, dtype=np.int64), device)
