"""The dry run: sizes, memory by part and a guess of the time, from steps that touch nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from unmask.train.config import TrainConfig
from unmask.train.run import FileTrainer

NUM_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """The figures of a run that was not run; sizes in bytes, times in seconds."""

    parameters: int
    trained: int
    rows: int
    units_per_epoch: int
    steps: int
    tokens_per_step: float
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    """Highest resident memory of this process so far; of the GPU, where there is one."""
    step_s: float
    total_s: float


def estimate(config: TrainConfig) -> Estimate:
    """Take three steps in a temporary folder and return the figures. Raises ConfigError, ModelError."""
    import torch

    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        trainer = FileTrainer(replace(config, output=str(Path(folder) / "run"), resume=True))
        network = trainer.network
        before = _peak()
        seconds, tokens = [], []
        for _ in range(min(NUM_STEPS, trainer.steps)):
            began = time.perf_counter()
            tokens.append(trainer.train_step().tokens)
            seconds.append(time.perf_counter() - began)
        trainer.close()
        total, trained = network.num_parameters
        width = 4 if config.precision != "bf16" else 6
        states = [
            value
            for optimizer in trainer.optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        optimizer_bytes = sum(value.numel() * value.element_size() for value in states)
        peak = _peak()
        step_s = statistics.median(seconds)
        gradients = trained * 4
        return Estimate(
            parameters=total,
            trained=trained,
            rows=trainer.prepared.store.account.rows,
            units_per_epoch=trainer.data.units.per_epoch,
            steps=trainer.steps,
            tokens_per_step=sum(tokens) / len(tokens),
            weights_bytes=total * width,
            gradients_bytes=gradients,
            optimizer_bytes=optimizer_bytes,
            activations_bytes=max(0, peak - before - gradients - optimizer_bytes),
            peak_bytes=peak,
            step_s=step_s,
            total_s=step_s * trainer.steps,
        )


def _peak() -> int:
    """Return the highest memory in use so far; 0 on Windows, which does not tell it."""
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
