"""Watching a run: loggers of its curves, and sample answers with the order in which they were unmasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch

from unmask.errors import DependencyError
from unmask.train.config import TrainConfig
from unmask.train.loop import StepLog
from unmask.train.network import Network
from unmask.train.prepare import Prepared
from unmask.train.store import HELD_OUT, TokenStore

SAMPLES = "samples.jsonl"
MAX_ANSWER = 128


class Logger(Protocol):
    """A place where the figures of every step go."""

    def log(self, entry: StepLog) -> None:
        """Take the figures of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def figures(entry: StepLog) -> dict[str, float]:
    """Return the numbers of a step by the names of their curves."""
    values = {
        "train/loss": entry.loss,
        "train/grad_norm": entry.grad_norm,
        "train/lr": entry.lr,
        "train/tokens_per_s": entry.tokens_per_s,
        **{f"loss_by_level/{name}": value for name, value in entry.task_loss.items()},
        **{f"score/{name}": value for name, value in entry.scores.items()},
    }
    return values if entry.eval_loss is None else {**values, "eval/loss": entry.eval_loss}


class TensorBoard:
    """TensorBoard's event files in a folder. Raises DependencyError without tensorboard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise DependencyError(
                "watch.tensorboard=true needs tensorboard, which is not installed; pip install "
                "'unmask[train]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def log(self, entry: StepLog) -> None:
        """Add a point to every curve."""
        for name, value in figures(entry).items():
            self._writer.add_scalar(name, value, entry.step)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases. Raises DependencyError without wandb."""

    def __init__(self, project: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise DependencyError(
                f"watch.wandb={project} needs wandb, which is not installed; pip install wandb"
            ) from None
        self._run = wandb.init(project=project, dir=str(folder), resume="allow")

    def log(self, entry: StepLog) -> None:
        """Send the figures."""
        self._run.log(figures(entry), step=entry.step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def make_loggers(config: TrainConfig, output: Path) -> list[Logger]:
    """Return the loggers of `watch.*`."""
    loggers: list[Logger] = []
    if config.watch.tensorboard:
        loggers.append(TensorBoard(output))
    if config.watch.wandb is not None:
        loggers.append(WandB(config.watch.wandb, output))
    return loggers


def prompts_of(store: TokenStore, count: int) -> list[list[int]]:
    """Return the token ids before the first trained token of the first held-out rows, else of any."""
    flags = [bool(flag & HELD_OUT) for flag in store.flags]
    order = sorted(range(len(store)), key=lambda index: (not flags[index], index))
    prompts: list[list[int]] = []
    for index in order:
        ids, loss, _ = store.example(index)
        first = int(loss.argmax())
        if first > 0:
            prompts.append(ids[:first].tolist())
        if len(prompts) == count:
            break
    return prompts


@torch.no_grad()
def write_samples(network: Network, prepared: Prepared, step: int, path: Path) -> None:
    """Append answers to the first prompts, decoded with seed 0, with the forward of each position."""
    from unmask.engine.llm import LLM

    start, config = prepared.start, network.config
    prompts = prompts_of(prepared.held_out or prepared.store, config.watch.samples)
    if not prompts:
        return
    room = start.spec.max_length - max(map(len, prompts))
    length = min(MAX_ANSWER, prepared.reading.max_length, room)
    if start.spec.block_size is not None:
        length -= length % start.spec.block_size
    if length < 1:
        return
    network.model.eval()
    llm = LLM(network.model, tokenizer=start.tokenizer, pack_weights=False)
    outputs = llm.generate(prompts, gen_length=length, seed=0, return_trace=True, progress=False)
    network.model.train()
    with path.open("a", encoding="utf-8") as file:
        for prompt, out in zip(prompts, outputs, strict=True):
            forwards = {
                commit.position: number
                for number, each in enumerate(out.trace or ())
                for commit in each.committed
            }
            content = {
                "step": step,
                "prompt": prompt if start.tokenizer is None else start.tokenizer.decode(prompt),
                "answer": out.text,
                "forward_of_position": [forwards[place] for place in sorted(forwards)],
            }
            file.write(json.dumps(content) + "\n")
