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

from unmask.attention.layered import Features
from unmask.distributed.control import Link, join
from unmask.distributed.replicated_stores import (
    Stores,
    ToldFeatures,
    ToldPages,
    ToldStore,
    told_mixing,
)
from unmask.knobs import whole
from unmask.kv.dense_store import Store
from unmask.kv.paged_store import PageStore
from unmask.models import load_model
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Mixing, Transformer

if TYPE_CHECKING:
    from unmask.models.weights import Progress


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
        with self.link.telling("forward", *told, told_mixing(mixing)):
            return super().hidden(ids, positions, visible, mixing, each)


def new_store(model: Transformer, rows: int, slots: int, features: bool) -> Store:
    """The store of `rows` of `slots` for a model; with `features`, of layer outputs too."""
    sizes = (model.part, rows, slots, model.dtype, model.device)
    if not isinstance(model, Shared):
        return Features(*sizes) if features else Store(*sizes)
    store = ToldFeatures(*sizes) if features else ToldStore(*sizes)
    store.announce(model.link, "features" if features else "rows", rows, slots)
    return store


def new_pages(model: Transformer, total: int, prefixes: bool) -> PageStore:
    """The store of up to `total` pages for a block-causal model; see `PageStore`."""
    if not isinstance(model, Shared):
        return PageStore(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store = ToldPages(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store.announce(model.link, "pages", total)
    return store


@torch.inference_mode()
def follow(model: Shared) -> Stores:
    """Do what rank 0 tells until it ends it; the stores that are left. Raises WorkerError."""
    stores, device = Stores(model), model.device
    while True:
        what, dropped, arguments = model.link.order()
        stores.drop(dropped)
        if what == "end":
            return stores
        if what == "forward":
            *inputs, told = arguments
            ids, positions, visible = (
                None if x is None else torch.from_numpy(x).to(device) for x in inputs
            )
            assert ids is not None, "a forward has ids"
            assert positions is not None, "a forward has positions"
            model.hidden(ids, positions, visible, stores.mixing(told))
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
    follow(model)
    distributed.destroy_process_group()
    raise SystemExit(0)
