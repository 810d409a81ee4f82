"""Tensor parallelism: one model over several processes, of which the first decides and the others follow.

Every rank holds its heads of every layer, their keys and values, and its part of every feed-forward (see
`models._ranks`). Rank 0 runs the engine as if it were alone. Before its network or a store does
something, it tells the others what, and they do the same with their part: a forward of these ids with
this mixing, a row moved in store 3. Logits, proposals and decisions exist on rank 0 only.
"""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.attention.layered import FeatureStore
from unmask.distributed.control import ControlChannel, join
from unmask.distributed.replicated_stores import (
    ReplicatedFeatures,
    ReplicatedPages,
    ReplicatedStore,
    Stores,
    describe_attention,
)
from unmask.knobs import whole
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore
from unmask.models import load_model
from unmask.models.spec import ModelSpec
from unmask.models.transformer import AttentionBackend, Transformer

if TYPE_CHECKING:
    from unmask.models.weights import Progress


class Shared(Transformer):
    """A rank's part of a model. On rank 0 it works like the whole one."""

    def __init__(self, channel: ControlChannel, spec: ModelSpec) -> None:
        super().__init__(spec, channel.ranks)
        self.channel = channel

    def hidden(
        self,
        ids: Tensor,
        position_ids: Tensor,
        visible: Tensor | None = None,
        backend: AttentionBackend | None = None,
        each: list[Tensor] | None = None,
    ) -> Tensor:
        """As in one process; rank 0 makes the others compute along. Raises WorkerError."""
        if self.ranks.rank:
            return super().hidden(ids, position_ids, visible, backend, each)
        told = [None if x is None else x.cpu().numpy() for x in (ids, position_ids, visible)]
        with self.channel.telling("forward", *told, describe_attention(backend)):
            return super().hidden(ids, position_ids, visible, backend, each)


def new_store(model: Transformer, rows: int, positions: int, features: bool) -> DenseStore:
    """The store of `rows` of `positions` for a model; with `features`, of layer outputs too."""
    sizes = (model.part, rows, positions, model.dtype, model.device)
    if not isinstance(model, Shared):
        return FeatureStore(*sizes) if features else DenseStore(*sizes)
    store = ReplicatedFeatures(*sizes) if features else ReplicatedStore(*sizes)
    store.announce(model.channel, "features" if features else "rows", rows, positions)
    return store


def new_pages(model: Transformer, total: int, prefixes: bool) -> PagedStore:
    """The store of up to `total` pages for a block-causal model; see `PagedStore`."""
    if not isinstance(model, Shared):
        return PagedStore(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store = ReplicatedPages(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store.announce(model.channel, "pages", total)
    return store


@torch.inference_mode()
def follow(model: Shared) -> Stores:
    """Do what rank 0 tells until it ends it; the stores that are left. Raises WorkerError."""
    stores, device = Stores(model), model.device
    while True:
        what, dropped, arguments = model.channel.order()
        stores.drop(dropped)
        if what == "end":
            return stores
        if what == "forward":
            *inputs, told = arguments
            ids, position_ids, visible = (
                None if x is None else torch.from_numpy(x).to(device) for x in inputs
            )
            assert ids is not None, "a forward has ids"
            assert position_ids is not None, "a forward has positions"
            model.hidden(ids, position_ids, visible, stores.backend(told))
        else:
            stores.orders[what](*arguments)


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
    channel = join(size, device)
    return load_model(model, dtype, channel.device, progress, partial(Shared, channel))


def take_roles(model: Transformer) -> None:
    """Return on rank 0 (and without ranks), which ends the others when its process ends.

    The other ranks follow and then leave by SystemExit: what comes behind a model's making runs on rank 0
    alone. They ignore SIGINT and SIGTERM, so that rank 0 can finish what it does. Raises WorkerError.
    """
    if not isinstance(model, Shared):
        return
    from torch import distributed

    model.channel.meet()
    if model.ranks.rank == 0:
        model.channel.end_at_exit()
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    follow(model)
    distributed.destroy_process_group()
    raise SystemExit(0)
