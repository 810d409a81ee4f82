"""How the ranks of a model reach each other: rank 0's orders, and the start and the end of it all.

Two groups of processes: sums go through one whose calls fail after `TIMEOUT_S`; orders through one (gloo,
also beside GPUs) that may be silent for as long as nobody asks for anything, and fails when its
connections close. So a rank that ends ends the others, at once or after `TIMEOUT_S`.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unmask.distributed import codec
from unmask.errors import ConfigError, WorkerError
from unmask.models import torch_device
from unmask.models.ranks import Ranks, lost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

START_S = 600.0
"""How long ranks wait for each other at the start, in seconds."""
TIMEOUT_S = 60.0
"""How long a rank waits for the others' summands, in seconds."""
SILENCE = timedelta(days=365)
FIRST_BYTES = 1 << 14
"""What every order sends; a longer one sends its rest in a second piece."""


class ControlChannel:
    """How one rank is tied to the others. Safe to use from several threads of rank 0."""

    def __init__(self, ranks: Ranks, control: ProcessGroup, device: torch.device) -> None:
        self.ranks, self.control, self.device = ranks, control, device
        self.dropped: list[int] = []
        self._num_stores, self._is_broken, self._ends = 0, False, False
        self._lock = threading.RLock()

    @contextmanager
    def telling(self, what: str, *arguments: Any) -> Iterator[None]:
        """Rank 0: tell the others to do what the body does here. Raises WorkerError."""
        with self._lock:
            if self._is_broken:
                raise WorkerError(
                    "a forward of this model failed on the way; start all ranks again"
                )
            try:
                dropped, self.dropped[:] = list(self.dropped), []
                self._broadcast(codec.pack([what, dropped, arguments]))
                yield
            except BaseException:  # the others may wait in the middle of what was told
                self._is_broken = True
                raise

    def next_store(self) -> int:
        """A number for a new store."""
        with self._lock:
            self._num_stores += 1
            return self._num_stores

    def order(self) -> tuple[str, list[int], list[Any]]:
        """Other ranks: what to do next, stores that are gone, arguments. Raises WorkerError."""
        what, dropped, arguments = codec.unpack(self._broadcast(None))
        return what, dropped, arguments

    def _broadcast(self, data: codec.Bytes | None) -> codec.Bytes:
        """Send (rank 0) or receive the bytes of one message, their number before them."""
        from torch import distributed

        first = np.zeros(FIRST_BYTES, dtype=np.uint8)
        if data is not None:
            start = data[: FIRST_BYTES - 8]
            first[:8] = np.array([len(data)], dtype=np.int64).view(np.uint8)
            first[8 : 8 + len(start)] = start
        try:
            distributed.broadcast(torch.from_numpy(first), 0, group=self.control)
            size = int(first[:8].view(np.int64)[0])
            rest = np.zeros(max(0, size - (FIRST_BYTES - 8)), dtype=np.uint8)
            if len(rest):
                if data is not None:
                    rest[:] = data[FIRST_BYTES - 8 :]
                distributed.broadcast(torch.from_numpy(rest), 0, group=self.control)
        except RuntimeError as error:
            raise lost(self.ranks.rank, error) from error
        return np.concatenate((first[8:], rest))[:size]

    def meet(self) -> None:
        """Wait until every rank is here, however long it takes. Raises WorkerError."""
        from torch import distributed

        try:
            distributed.barrier(group=self.control)
        except RuntimeError as error:
            raise lost(self.ranks.rank, error) from error

    def end_at_exit(self) -> None:
        """Rank 0: `end` and leave when this process ends."""
        from torch import distributed

        if not self._ends:
            self._ends = True
            atexit.register(distributed.destroy_process_group)
            atexit.register(self.end)  # the last that was registered runs first

    def end(self) -> None:
        """Rank 0: let the others go, unless they are lost."""
        if self._lock.acquire(timeout=TIMEOUT_S):
            try:
                if not self._is_broken:
                    with self.telling("end"):
                        pass
            finally:
                self._is_broken = True
                self._lock.release()


def join(size: int, device: str | torch.device | None = None) -> ControlChannel:
    """Meet the `size - 1` other processes that `torchrun` started; on GPUs each takes its own.

    Raises ConfigError when there are not `size` of them or torch.distributed is in use already.
    """
    from torch import distributed

    if not distributed.is_available():
        raise ConfigError(f"tensor_parallel_size={size} needs a PyTorch with torch.distributed")
    if distributed.is_initialized():
        raise ConfigError(
            f"tensor_parallel_size={size}: torch.distributed is in use in this process already; a process "
            f"holds one such model, and makes it before anything else initializes torch.distributed"
        )
    where = torch_device(device)
    is_cuda = where.type == "cuda"
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=timedelta(seconds=START_S)
        )
    except ValueError as error:
        raise ConfigError(
            f"tensor_parallel_size={size} needs {size} processes ({error}); start them with: "
            f"torchrun --nproc-per-node {size} SCRIPT.py"
        ) from None
    found = distributed.get_world_size()
    if found != size:
        distributed.destroy_process_group()
        raise ConfigError(
            f"tensor_parallel_size={size}, but {found} processes were started; use torchrun "
            f"--nproc-per-node {size}, or tensor_parallel_size={found}"
        )
    if is_cuda and where.index is None:
        where = torch_device(f"cuda:{distributed.get_node_local_rank()}")
        torch.cuda.set_device(where)
    group = distributed.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    control = distributed.new_group(timeout=SILENCE, backend="gloo")
    return ControlChannel(Ranks(distributed.get_rank(), size, group), control, where)
