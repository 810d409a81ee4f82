"""The control channel of a tensor-parallel model: messages from rank 0, start and end of the process group.

There are two process groups. Calls in the group of tensor sums time out after `TIMEOUT_S`. The group of
messages (gloo, also beside GPUs) may idle for as long as there are no requests, and fails when its
connections close. So a rank that ends also ends the others, immediately or after `TIMEOUT_S`.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch

from unmask.distributed.codec import Bytes, EndMessage, Envelope, Message, pack, unpack
from unmask.errors import ConfigError, WorkerError
from unmask.models import torch_device
from unmask.models.ranks import Ranks, lost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

START_S = 600.0
"""Timeout of the first rendezvous, in seconds."""
TIMEOUT_S = 60.0
"""Timeout of a tensor sum, in seconds."""
IDLE_TIMEOUT = timedelta(days=365)
FIRST_BYTES = 1 << 14
"""Size of the first broadcast of every message; a longer message sends the rest in a second one."""


class ControlChannel:
    """One rank's end of the channel. Thread-safe on rank 0."""

    def __init__(self, ranks: Ranks, control: ProcessGroup, device: torch.device) -> None:
        self.ranks, self.control, self.device = ranks, control, device
        self.released: list[int] = []
        """Numbers of stores to release on the other ranks with the next message."""
        self._num_stores, self._is_broken, self._ends_at_exit = 0, False, False
        self._lock = threading.RLock()

    @contextmanager
    def collective(self, message: Message) -> Iterator[None]:
        """Broadcast a message from rank 0; the body is rank 0's own part of that operation.

        Raises WorkerError when an earlier operation failed: the other ranks may be stuck in it.
        """
        with self._lock:
            if self._is_broken:
                raise WorkerError(
                    "an earlier operation of this tensor-parallel model failed, so its ranks are out of "
                    "step; start all ranks again"
                )
            try:
                num_released = len(self.released)  # a finalizer may append meanwhile
                envelope = Envelope(message, self.released[:num_released])
                del self.released[:num_released]
                self._broadcast(pack(envelope))
                yield
            except BaseException:
                self._is_broken = True
                raise

    def next_store(self) -> int:
        """Return the number of a new store."""
        with self._lock:
            self._num_stores += 1
            return self._num_stores

    def receive(self) -> Envelope:
        """Return rank 0's next message on another rank. Raises WorkerError."""
        envelope = unpack(self._broadcast(None))
        if not isinstance(envelope, Envelope):
            raise WorkerError(
                f"rank {self.ranks.rank} received a {type(envelope).__name__}, not an Envelope; start all "
                f"ranks from the same version of unmask"
            )
        return envelope

    def _broadcast(self, data: Bytes | None) -> Bytes:
        """Send one message, preceded by its size in bytes; receive one if `data` is None (rank > 0)."""
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

    def barrier(self) -> None:
        """Wait, without a timeout, until every rank is here. Raises WorkerError."""
        from torch import distributed

        try:
            distributed.barrier(group=self.control)
        except RuntimeError as error:
            raise lost(self.ranks.rank, error) from error

    def end_at_exit(self) -> None:
        """Call `end` on rank 0 and destroy the process group when this process exits."""
        from torch import distributed

        if not self._ends_at_exit:
            self._ends_at_exit = True
            atexit.register(distributed.destroy_process_group)
            atexit.register(self.end)  # the last that was registered runs first

    def end(self) -> None:
        """End the worker loops of the other ranks, unless a failure has ended them already."""
        if self._lock.acquire(timeout=TIMEOUT_S):
            try:
                if not self._is_broken:
                    with self.collective(EndMessage()):
                        pass
            finally:
                self._is_broken = True
                self._lock.release()


def init_ranks(size: int, device: str | torch.device | None = None) -> ControlChannel:
    """Join the process group of the `size` processes that `torchrun` started; every rank has its own GPU.

    Raises ConfigError when the number of processes differs or torch.distributed is already initialized.
    """
    from torch import distributed

    if not distributed.is_available():
        raise ConfigError(f"tensor_parallel_size={size} needs a PyTorch with torch.distributed")
    if distributed.is_initialized():
        raise ConfigError(
            f"tensor_parallel_size={size}: torch.distributed is in use in this process already; a process "
            f"can load one such model, before anything else initializes torch.distributed"
        )
    rank_device = torch_device(device)
    is_cuda = rank_device.type == "cuda"
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=timedelta(seconds=START_S)
        )
    except ValueError as error:
        raise ConfigError(
            f"tensor_parallel_size={size} needs {size} processes ({error}); start them with: "
            f"torchrun --nproc-per-node {size} SCRIPT.py"
        ) from None
    world_size = distributed.get_world_size()
    if world_size != size:
        distributed.destroy_process_group()
        raise ConfigError(
            f"tensor_parallel_size={size}, but {world_size} processes were started; use torchrun "
            f"--nproc-per-node {size}, or tensor_parallel_size={world_size}"
        )
    if is_cuda and rank_device.index is None:
        rank_device = torch_device(f"cuda:{distributed.get_node_local_rank()}")
        torch.cuda.set_device(rank_device)
    group = distributed.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    control = distributed.new_group(timeout=IDLE_TIMEOUT, backend="gloo")
    return ControlChannel(Ranks(distributed.get_rank(), size, group), control, rank_device)
