"""The training loop: batch, forward, loss, backward, clip, step, one log line."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.durable import FolderLock, new_folder, write_text
from unmask.errors import ConfigError
from unmask.models.spec import ModelSpec
from unmask.train import checkpoint
from unmask.train.corrupt import row_losses
from unmask.train.dataset import Dataset
from unmask.train.optim import optimizers, rate
from unmask.train.predict import masked_logits
from unmask.train.recipe import Recipe, same_recipe, save_recipe
from unmask.train.start import build

LOG, REPEATS = "log.jsonl", "log.repeated.jsonl"


@dataclass(frozen=True)
class StepLog:
    """The figures of one optimizer step; `eta_s` is the estimated time left in seconds."""

    step: int
    steps: int
    loss: float
    task_loss: dict[str, float]
    grad_norm: float
    lr: float
    tokens_per_s: float
    eta_s: float
    eval_loss: float | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    """Rewards, shares and accuracies by name, of runs that have any."""

    def line(self) -> str:
        """Format the step as one log line."""
        parts = sorted(self.task_loss.items()) + sorted(self.scores.items())
        tasks = " ".join(f"{name} {value:.3f}" for name, value in parts)
        minutes, seconds = divmod(int(self.eta_s), 60)
        held_out = "" if self.eval_loss is None else f" | held out {self.eval_loss:.4f}"
        return (
            f"step {self.step:05d}/{self.steps:05d} | loss {self.loss:.4f} | grad {self.grad_norm:.2f}"
            f" | lr {self.lr:.2e} | {self.tokens_per_s:.0f} tok/s | eta {minutes}m{seconds:02d}s"
            f" | {tasks}{held_out}"
        )


def set_repeats_aside(log: Path, step: int) -> None:
    """Move the log lines after `step`, which a resumed run repeats, to `log.repeated.jsonl`.

    So the log holds every step once. Lines that a crash left incomplete are moved too.
    """
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    done: list[bytes] = []
    repeated: list[bytes] = []
    for line in lines:
        (done if _step_of(line) <= step else repeated).append(line)
    if repeated:
        with log.with_name(REPEATS).open("ab") as file:
            file.writelines(line.rstrip(b"\n") + b"\n" for line in repeated)
        write_text(log, b"".join(done).decode())


def _step_of(line: bytes) -> float:
    """Return the step of a log line; infinity for one that cannot be read."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


@contextmanager
def _kernels(recipe: Recipe) -> Iterator[None]:
    """Select bfloat16 autocast, and plain matrix-product attention (faster on a CPU for short rows)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast)
    with autocast, sdpa_kernel(SDPBackend.MATH):
        yield


class Trainer:
    """A run of a recipe on a dataset; iterate over it to train.

    `spec` is the network's, e.g. of `network_spec`; `tokenizer_folder` holds the tokenizer files that go
    into every exported checkpoint.
    """

    def __init__(
        self, recipe: Recipe, spec: ModelSpec, data: Dataset, tokenizer_folder: Path
    ) -> None:
        self.recipe, self.data, self.tokenizer_folder = recipe, data, tokenizer_folder
        self.output = Path(recipe.output)
        self._lock = FolderLock(self.output, "training")
        try:
            self._begin(recipe, spec)
        except BaseException:
            self._lock.release()
            raise
        self._hidden: Callable[..., Tensor] = self.model.hidden
        if recipe.compile:
            self._hidden = torch.compile(self.model.hidden, dynamic=True)

    def _begin(self, recipe: Recipe, spec: ModelSpec) -> None:
        """Build the model, and restore the newest checkpoint that can be read."""
        self.model = build(spec, recipe.seed, recipe.embed_std)
        if recipe.init is not None:
            checkpoint.load_into(self.model, recipe.init)
        self.optimizers = optimizers(self.model, recipe)
        self.step = 0
        saved = checkpoint.checkpoints(self.output)
        self.damaged: list[str] = []
        if saved and not recipe.resume:
            raise ConfigError(
                f"output={recipe.output!r} holds checkpoints up to {saved[-1].name}; choose another "
                f"folder, delete it, or resume=true"
            )
        if saved:
            newest, self.damaged = checkpoint.newest(self.output)
            assert newest is not None, "there are checkpoints, and one can be read"
            same_recipe(recipe, self.output / "recipe.yaml", newest.name)
            self.step = checkpoint.restore(self.model, self.optimizers, newest)
        save_recipe(recipe, self.output / "recipe.yaml")

    def train_step(self) -> tuple[float, dict[str, float], float, int]:
        """Take one optimizer step; return (loss, loss by task, gradient norm, tokens)."""
        sums: dict[str, list[float]] = {}
        batches = self.data.batches(self.step)
        num_rows = sum(len(batch.tasks) for batch in batches)
        for batch in batches:
            with _kernels(self.recipe):
                logits = masked_logits(self.model, self._hidden, batch)
            masked = batch.noisy.masked_BT
            losses_B = row_losses(
                logits, batch.clean_BT[masked], batch.noisy.weights_BT[masked], masked
            )
            (losses_B.sum() / num_rows).backward()  # type: ignore[no-untyped-call]
            for task, loss in zip(batch.tasks, losses_B.tolist(), strict=True):
                sums.setdefault(task, []).append(loss)
        tokens = sum(batch.clean_BT.numel() for batch in batches)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        if not math.isfinite(norm):
            raise ConfigError(f"step {self.step}: the gradient is {norm}; lower muon_lr or adam_lr")
        scale = rate(self.step, self.recipe)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["peak"] * scale
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1
        mean = sum(map(sum, sums.values())) / num_rows
        return mean, {task: sum(v) / len(v) for task, v in sums.items()}, norm, tokens

    def __iter__(self) -> Iterator[StepLog]:
        """Train to the end: yield a log entry a step, write checkpoints, export the final model."""
        average = 0.0
        set_repeats_aside(self.output / LOG, self.step)
        with self._lock, (self.output / LOG).open("a", encoding="utf-8") as log:
            while self.step < self.recipe.steps:
                began = time.perf_counter()
                loss, losses, norm, tokens = self.train_step()
                elapsed = time.perf_counter() - began
                average = elapsed if not average else 0.95 * average + 0.05 * elapsed
                entry = StepLog(
                    step=self.step,
                    steps=self.recipe.steps,
                    loss=loss,
                    task_loss=losses,
                    grad_norm=norm,
                    lr=self.optimizers["muon"].param_groups[0]["lr"],
                    tokens_per_s=tokens / elapsed,
                    eta_s=average * (self.recipe.steps - self.step),
                )
                log.write(json.dumps(dataclasses.asdict(entry)) + "\n")
                log.flush()
                if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                    self.save()
                yield entry
            with new_folder(self.output / "model") as partial:
                checkpoint.export(self.model, self.tokenizer_folder, partial, torch.bfloat16)

    def save(self) -> Path:
        """Write a checkpoint of the current step and return its folder."""
        return checkpoint.save(
            self.model, self.optimizers, self.step, self.tokenizer_folder, self.output
        )
