"""Training by several processes of torchrun: weights, gradients and optimizer state are sharded (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.errors import ConfigError
from unmask.models.transformer import Transformer
from unmask.train.config import TrainConfig


@dataclass(frozen=True)
class TrainRanks:
    """The processes of a training; alone, nothing is communicated."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def sum(self, numbers: list[float]) -> list[float]:
        """Return the sums over the processes, float64."""
        if self.size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        if torch.cuda.is_available():
            values = values.cuda()
        torch.distributed.all_reduce(values)
        result: list[float] = values.tolist()
        return result


def join(config: TrainConfig) -> TrainRanks:
    """Return this process's place among those of torchrun. Raises ConfigError without torchrun."""
    if config.parallel == "none":
        return TrainRanks()
    if config.optim.name == "muon":
        raise ConfigError("optim.name=muon is not for parallel=fsdp; use adamw")
    if config.watch.sample_every:
        raise ConfigError("watch.sample_every is not for parallel=fsdp; leave it out")
    if config.watch.tasks:
        raise ConfigError("watch.tasks is not for parallel=fsdp; leave it out")
    if config.compile:
        raise ConfigError("compile=true is not for parallel=fsdp; leave it out")
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        try:
            torch.distributed.init_process_group(backend)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"parallel=fsdp needs the processes of torchrun ({str(error).splitlines()[0]}); start with "
                f"torchrun --nproc-per-node N -m unmask.train ..."
            ) from None
    return TrainRanks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def shard(model: Transformer, config: TrainConfig) -> None:
    """Shard the parameters of every layer and of the rest over all processes."""
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy()
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mp_policy=policy)
    # The head is used after `hidden`: the rest stays whole until the backward pass.
    fully_shard(model, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def whole(value: Tensor) -> Tensor:
    """Return a sharded tensor as a whole one, on every process; others as they are."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def save_shards(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], folder: Path
) -> None:
    """Write every process's part into an existing folder (torch.distributed.checkpoint)."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    weights, states = get_state_dict(model, list(optimizers.values()))
    save({"model": weights, "optimizer": states}, checkpoint_id=str(folder))


def load_shards(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], folder: Path
) -> None:
    """Load what `save_shards` wrote, with any number of processes."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    several = list(optimizers.values())
    weights, states = get_state_dict(model, several)
    state = {"model": weights, "optimizer": states}
    load(state, checkpoint_id=str(folder))
    set_state_dict(
        model,
        several,
        model_state_dict=state["model"],  # type: ignore[arg-type]
        optim_state_dict=state["optimizer"],  # type: ignore[arg-type]
    )
