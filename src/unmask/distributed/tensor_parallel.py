"""Tensor parallelism: one model over several processes; rank 0 decides and the other ranks replay.

Every rank holds its heads of every layer, their keys and values, and its part of every feed-forward (see
`models.ranks`). Rank 0 runs the engine as a single process would. Before its network runs or a store
changes, it broadcasts a message with the inputs of that forward or the mutation of that store, and the
other ranks do the same with their part. Logits, proposals and decisions exist on rank 0 only.
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
from unmask.distributed.codec import CreateStore, EndMessage, ForwardMessage
from unmask.distributed.control import ControlChannel, init_ranks
from unmask.distributed.replicated_stores import (
    ReplicatedDenseStore,
    ReplicatedFeatureStore,
    ReplicatedPagedStore,
    StoreReplicas,
    attention_message,
)
from unmask.knobs import whole
from unmask.kv.dense_store import DenseStore
from unmask.kv.paged_store import PagedStore
from unmask.models import load_model
from unmask.models.spec import ModelSpec
from unmask.models.transformer import AttentionBackend, Transformer

if TYPE_CHECKING:
    from unmask.models.weights import Progress


class ShardedTransformer(Transformer):
    """One rank's part of a model; on rank 0 it behaves like the whole model."""

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
        """Run the forward on all ranks, started from rank 0; see `Transformer`. Raises WorkerError."""
        if self.ranks.rank:
            return super().hidden(ids, position_ids, visible, backend, each)
        message = ForwardMessage(
            ids.cpu().numpy(),
            position_ids.cpu().numpy(),
            None if visible is None else visible.cpu().numpy(),
            attention_message(backend),
        )
        with self.channel.collective(message):
            return super().hidden(ids, position_ids, visible, backend, each)


def new_dense_store(model: Transformer, rows: int, positions: int, features: bool) -> DenseStore:
    """Return a dense store for a model, on all of its ranks; with `features`, a FeatureStore."""
    sizes = (model.part, rows, positions, model.dtype, model.device)
    if not isinstance(model, ShardedTransformer):
        return FeatureStore(*sizes) if features else DenseStore(*sizes)
    store = ReplicatedFeatureStore(*sizes) if features else ReplicatedDenseStore(*sizes)
    store.create_replicas(model.channel, "features" if features else "dense", rows, positions)
    return store


def new_paged_store(model: Transformer, total: int, prefixes: bool) -> PagedStore:
    """Return a store of up to `total` pages for a block-causal model, on all of its ranks."""
    if not isinstance(model, ShardedTransformer):
        return PagedStore(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store = ReplicatedPagedStore(model.part, total, model.dtype, model.device, prefixes=prefixes)
    store.create_replicas(model.channel, "paged", total)
    return store


@torch.inference_mode()
def run_worker(model: ShardedTransformer) -> StoreReplicas:
    """Replay rank 0's messages until its EndMessage; return the remaining stores. Raises WorkerError."""
    stores, device = StoreReplicas(model), model.device
    while True:
        envelope = model.channel.receive()
        stores.release(envelope.released)
        message = envelope.message
        if isinstance(message, EndMessage):
            return stores
        if isinstance(message, ForwardMessage):
            model.hidden(
                torch.from_numpy(message.ids).to(device),
                torch.from_numpy(message.position_ids).to(device),
                None if message.visible is None else torch.from_numpy(message.visible).to(device),
                stores.backend(message.attention),
            )
        elif isinstance(message, CreateStore):
            stores.create(message)
        else:
            stores.mutate(message)


def load(
    model: str | Path,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    size: int = 1,
) -> Transformer:
    """Load a model like `load_model`, or this rank's part of it when `size` > 1. Raises ConfigError."""
    if whole("tensor_parallel_size", size, 1) == 1:
        return load_model(model, dtype, device, progress)
    channel = init_ranks(size, device)
    return load_model(model, dtype, channel.device, progress, partial(ShardedTransformer, channel))


def start_workers(model: Transformer) -> None:
    """Run the worker loop on all ranks but 0; return on rank 0 and for a model without ranks.

    The other ranks leave the loop by SystemExit when rank 0 ends, so the code after loading a model runs on
    rank 0 alone. They ignore SIGINT and SIGTERM, so that rank 0 can complete its work. Raises WorkerError.
    """
    if not isinstance(model, ShardedTransformer):
        return
    from torch import distributed

    model.channel.barrier()
    if model.ranks.rank == 0:
        model.channel.end_at_exit()
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    run_worker(model)
    distributed.destroy_process_group()
    raise SystemExit(0)
