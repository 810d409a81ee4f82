"""Copies of small arrays between the host and the device of the model."""

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


def is_asynchronous(device: torch.device) -> bool:
    """Return whether a device computes while the host goes on; a CPU computes in the host's thread."""
    return device.type != "cpu"


class Download:
    """Numbers on their way to the host: one copy, and one wait for it.

    On CUDA the copy is queued behind the computation, into pinned memory, so that the host goes on.
    """

    def __init__(self, values: Tensor) -> None:
        """Queue the copy of float64 values."""
        self._values, self._event = values, None
        if values.device.type == "cuda":
            self._values = values.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # The present card may be another one.
            self._event.record(torch.cuda.current_stream(values.device))

    def wait(self) -> NDArray[np.float64]:
        """Return the numbers as soon as they are there."""
        if self._event is not None:
            self._event.synchronize()
        numbers: NDArray[np.float64] = self._values.cpu().numpy()
        return numbers
