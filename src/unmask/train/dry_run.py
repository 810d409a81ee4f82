"""The dry run: sizes, memory by part and a guess of the time, from steps that touch nothing."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from unmask.train.config import TrainConfig
from unmask.train.run import FileTrainer

Result = TypeVar("Result")
NUM_STEPS = 3
NUM_SAMPLED = 24
"""Steps, evenly spread over the run, whose sizes are looked at."""


@dataclass(frozen=True)
class Estimate:
    """The figures of a run that was not run; sizes in bytes, times in seconds.

    `process_bytes`: Python and its libraries. `peak_bytes`: the sum of the parts, the highest resident
    memory of the process; on a GPU that of the GPU, where `process_bytes` is 0.
    """

    parameters: int
    trained: int
    rows: int
    units_per_epoch: int
    steps: int
    tokens_per_step: float
    process_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int
    step_s: float
    other_s: float
    """All evaluations and checkpoints, with the final folder."""
    total_s: float


def estimate(config: TrainConfig) -> Estimate:
    """Take four steps in a temporary folder and return the figures. Raises ConfigError, ModelError.

    The first one, the largest of `NUM_SAMPLED` of the run, is for the memory; the time of a token is
    measured in three of median size. An evaluation and a checkpoint are measured once each.
    """
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        trainer = FileTrainer(replace(config, output=str(Path(folder) / "run"), resume=True))
        network = trainer.network
        before = _in_use()
        sizes = _step_sizes(trainer)
        order = sorted(sizes, key=lambda step: sizes[step])
        trainer.step = order[-1]
        trainer.train_step()
        seconds, tokens = [], []
        middle = order[max(0, len(order) // 2 - NUM_STEPS // 2) :][:NUM_STEPS]
        for step in (middle * NUM_STEPS)[:NUM_STEPS]:
            trainer.step = step
            elapsed, done = _timed(trainer.train_step)
            seconds.append(elapsed)
            tokens.append(done.tokens)
        watch = config.watch
        eval_s = _timed(lambda: (trainer.evaluate(), trainer.evaluate_rewards()))[0]
        save_s = _timed(trainer.save)[0]
        trainer.close()
        total, trained = network.num_parameters
        states = _states(trainer)
        peak = _peak()
        parts = [network.weights_bytes, sum(v.numel() * v.element_size() for v in states)]
        gradients = trained * 4
        process = max(0, before - parts[0])
        tokens_per_step = statistics.fmean(sizes.values()) if any(sizes.values()) else tokens[0]
        step_s = sum(seconds) / max(1, sum(tokens)) * tokens_per_step
        num_evals = 1 + trainer.steps // watch.eval_every if watch.eval_every else 0
        other_s = eval_s * num_evals + save_s * (2 + trainer.steps // watch.checkpoint_every)
        return Estimate(
            parameters=total,
            trained=trained,
            rows=trainer.prepared.store.account.rows,
            units_per_epoch=trainer.data.units.per_epoch,
            steps=trainer.steps,
            tokens_per_step=tokens_per_step,
            process_bytes=process,
            weights_bytes=parts[0],
            gradients_bytes=gradients,
            optimizer_bytes=parts[1],
            activations_bytes=max(0, peak - process - parts[0] - parts[1] - gradients),
            peak_bytes=peak,
            step_s=step_s,
            other_s=other_s,
            total_s=step_s * trainer.steps + other_s,
        )


def _states(trainer: FileTrainer) -> list[torch.Tensor]:
    """Return the tensors of the optimizers."""
    return [
        value
        for optimizer in trainer.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def _step_sizes(trainer: FileTrainer) -> dict[int, int]:
    """Return the tokens of steps that are spread over the run; 0 where they are not known before."""
    count = min(NUM_SAMPLED, trainer.steps)
    steps = sorted({k * trainer.steps // count for k in range(count)})
    if trainer.policy is not None:
        return dict.fromkeys(steps, 0)
    return {
        step: sum(batch.clean_BT.numel() for batch in trainer.data.batches(step)) for step in steps
    }


def _timed(call: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _in_use() -> int:
    """Return the memory in use now; the highest so far where the system does not tell it."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _peak()
    import resource

    return pages * resource.getpagesize()


def _peak() -> int:
    """Return the highest memory in use so far; 0 on Windows, which does not tell it."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
