"""Tensor parallelism: one model over several processes, of which the first decides and the others follow.

Every rank holds its heads of every layer, their keys and values, and its part of every feed-forward (see
`models._ranks`). Rank 0 runs the engine as if it were alone. Before its network or its store does
something, it tells the others what (`wire`), and they do the same with their part: a forward of these ids
with this mixing, a row moved in store 3. Logits, proposals and decisions exist on rank 0 only.

Two groups of processes: sums go through one whose calls fail after `TIMEOUT_S`; orders through one (gloo,
also beside GPUs) that may be silent for as long as nobody asks for anything, and fails when its
connections close. So a rank that ends ends the others, at once or after `TIMEOUT_S`.
"""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unmask.caches._features import Features, Layered
from unmask.caches._packed import Packed
from unmask.caches.store import Store
from unmask.canvas import Ints
from unmask.engine import wire
from unmask.errors import ConfigError, WorkerError
from unmask.knobs import whole
from unmask.models import load_model, torch_device
from unmask.models._ranks import Ranks, lost
from unmask.models._transformer import Mixing, Transformer
from unmask.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from unmask.models._weights import Progress

START_S = 600.0
"""How long ranks wait for each other at the start, in seconds."""
TIMEOUT_S = 60.0
"""How long a rank waits for the others' summands, in seconds."""
SILENCE = timedelta(days=365)
FIRST_BYTES = 1 << 14
"""What every order sends; a longer one sends its rest in a second piece."""
STORE_ORDERS = ("reserve", "move_row", "move_slots")


class Link:
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
                self._broadcast(wire.pack([what, dropped, arguments]))
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
        what, dropped, arguments = wire.unpack(self._broadcast(None))
        return what, dropped, arguments

    def _broadcast(self, data: wire.Bytes | None) -> wire.Bytes:
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


def join(size: int, device: str | torch.device | None = None) -> Link:
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
    return Link(Ranks(distributed.get_rank(), size, group), control, where)


class Shared(Transformer):
    """A rank's part of a model. On rank 0 it works like the whole one."""

    def __init__(self, link: Link, spec: ModelSpec) -> None:
        super().__init__(spec, link.ranks)
        self.link = link

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor | None = None,
        mixing: Mixing | None = None,
        each: list[Tensor] | None = None,
    ) -> Tensor:
        """As in one process; rank 0 makes the others compute along. Raises WorkerError."""
        if self.ranks.rank:
            return super().hidden(ids, positions, visible, mixing, each)
        told = [None if x is None else x.cpu().numpy() for x in (ids, positions, visible)]
        with self.link.telling("forward", *told, _told_mixing(mixing)):
            return super().hidden(ids, positions, visible, mixing, each)


def _told_mixing(mixing: Mixing | None) -> list[Any] | None:
    if mixing is None:
        return None
    assert isinstance(mixing, Packed), f"no way to tell the other ranks of {type(mixing)}"
    number = None if mixing.store is None else getattr(mixing.store, "number", None)
    assert mixing.store is None or number is not None, "the store was made by `new_store`"
    items = mixing.items if isinstance(mixing, Layered) else mixing.lanes
    return [isinstance(mixing, Layered), list(items), number]


class _ToldStore(Store):
    """Rank 0's part of a store; the other ranks keep theirs in the same order."""

    link: Link
    number: int

    def reserve(self, slots: int) -> None:
        """Make room."""
        if slots > self.slots:
            with self.link.telling("reserve", self.number, slots):
                super().reserve(slots)

    def move_row(self, source: int, target: int) -> None:
        """Copy one row over another (a finished one)."""
        with self.link.telling("move_row", self.number, source, target):
            super().move_row(source, target)

    def move_slots(self, row: int, sources: Ints, targets: Ints) -> None:
        """Slots `sources` (ascending) of a row become slots `targets` (ascending); keys turn along."""
        with self.link.telling("move_slots", self.number, row, sources, targets):
            super().move_slots(row, sources, targets)


class _ToldFeatures(_ToldStore, Features):
    """The same with layer outputs."""


def new_store(model: Transformer, rows: int, slots: int, features: bool) -> Store:
    """The store of `rows` of `slots` for a model; with `features`, of layer outputs too."""
    sizes = (model.part, rows, slots, model.dtype, model.device)
    if not isinstance(model, Shared):
        return Features(*sizes) if features else Store(*sizes)
    link = model.link
    number = link.next_store()
    with link.telling("store", number, rows, slots, features):
        store = _ToldFeatures(*sizes) if features else _ToldStore(*sizes)
    store.link, store.number = link, number
    weakref.finalize(store, link.dropped.append, number).atexit = False
    return store


@dataclass(frozen=True, slots=True)
class Follower:
    """A rank that does what rank 0 tells; `stores` by number."""

    model: Shared
    stores: dict[int, Store]

    @torch.inference_mode()
    def run(self) -> None:
        """Do so until rank 0 ends it. Raises WorkerError when rank 0 is gone."""
        while True:
            what, dropped, arguments = self.model.link.order()
            for number in dropped:
                self.stores.pop(number, None)
            if what == "end":
                return
            if what == "forward":
                self._forward(*arguments)
            elif what == "store":
                number, rows, slots, features = arguments
                sizes = (self.model.part, rows, slots, self.model.dtype, self.model.device)
                self.stores[number] = Features(*sizes) if features else Store(*sizes)
            else:
                assert what in STORE_ORDERS, f"unknown order {what!r}"
                getattr(self.stores[arguments[0]], what)(*arguments[1:])

    def _forward(
        self, ids: Ints, positions: Ints, visible: np.ndarray | None, told: list[Any] | None
    ) -> None:
        device = self.model.device
        ids_, positions_ = (torch.from_numpy(x).to(device) for x in (ids, positions))
        seen = None if visible is None else torch.from_numpy(visible).to(device)
        mixing = None if told is None else self._mixing(*told)
        self.model.hidden(ids_, positions_, seen, mixing)

    def _mixing(self, is_layered: bool, items: list[Any], number: int | None) -> Packed:
        store = None if number is None else self.stores[number]
        spec, device, ranks = self.model.spec, self.model.device, self.model.ranks
        if not is_layered:
            return Packed(items, store, spec.block_size, device, ranks)
        assert isinstance(store, Features), "layered plans have their store"
        return Layered(items, store, spec.block_size, device, ranks)


def load(
    model: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    size: int = 1,
) -> Transformer:
    """`load_model`, or this rank's part when `size` processes share it. Raises ConfigError too."""
    if whole("tensor_parallel_size", size, 1) == 1:
        return load_model(model, dtype, device, progress)
    link = join(size, device)
    return load_model(model, dtype, link.device, progress, partial(Shared, link))


def take_roles(model: Transformer) -> None:
    """Return on rank 0 (and without ranks), which ends the others when its process ends.

    The other ranks follow and then leave by SystemExit: what comes behind a model's making runs on rank 0
    alone. They ignore SIGINT and SIGTERM, so that rank 0 can finish what it does. Raises WorkerError.
    """
    if not isinstance(model, Shared):
        return
    from torch import distributed

    model.link.meet()
    if model.ranks.rank == 0:
        model.link.end_at_exit()
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    Follower(model, {}).run()
    distributed.destroy_process_group()
    raise SystemExit(0)
