"""A training on data files: steps, evaluation, samples, checkpoints, the final folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from unmask.durable import FolderLock, new_folder, write_text
from unmask.errors import ConfigError
from unmask.objectives import confidence_loss
from unmask.train import checkpoint
from unmask.train.batches import FileData, Units
from unmask.train.card import write_card
from unmask.train.config import TrainConfig, check_same, save_config
from unmask.train.dataset import Batch
from unmask.train.head import weighted_loss
from unmask.train.loop import LOG, StepLog, set_repeats_aside
from unmask.train.network import Network
from unmask.train.noise import mix
from unmask.train.optim import make_optimizers, trapezoid
from unmask.train.predict import masked_states
from unmask.train.prepare import Prepared, prepare
from unmask.train.ranks import join, load_shards, save_shards, whole
from unmask.train.watch import SAMPLES, make_loggers, write_samples

CONFIG, FINAL, BAD_ROWS = "config.yaml", "final", "bad_rows.jsonl"
EVAL_BATCHES = 4
"""Number of held-out batches whose loss is measured, the same ones with the same noise every time."""


class FileTrainer:
    """A run of settings on data files; iterate over it to train.

    The folder is locked while the object exists. Raises ConfigError and ModelError.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.output = config, Path(config.output).expanduser()
        self.processes = join(config)
        self._lock = FolderLock(self.output, "training") if self.is_first else None
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def is_first(self) -> bool:
        """True in the process that writes files: the only one, or rank 0."""
        return self.processes.rank == 0

    def _begin(self) -> None:
        config = self.config
        self.damaged: list[str] = []
        saved = checkpoint.checkpoints(self.output)
        if saved and not config.resume:
            raise ConfigError(
                f"output={config.output!r} holds checkpoints up to {saved[-1].name}; choose another "
                f"folder, delete it, or resume=true"
            )
        newest = None
        if saved:
            newest, self.damaged = checkpoint.newest(self.output)
            assert newest is not None, "there are checkpoints, and one can be read"
            if (self.output / CONFIG).exists():
                check_same(config, self.output / CONFIG, newest.name)
        if not self.is_first:
            self.processes.barrier()  # until the rows are tokenized
        self.prepared: Prepared = prepare(config, self.output)
        if self.is_first:
            self._write_bad_rows()
            self.processes.barrier()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = Network(config, self.prepared.start, self.device)
        self.data = self._data(held_out=False)
        self.eval_data = self._eval_data()
        self.steps = self.data.num_steps
        self.optimizers = make_optimizers(self.network.masters, config)
        self.step = 0
        self.best: float | None = None
        self.evaluations: list[tuple[int, float]] = []
        if newest is not None:
            if self.network.is_sharded:
                load_shards(self.network.model, self.optimizers, newest)
            else:
                self.network.read(newest, self.optimizers)
            progress = json.loads((newest / checkpoint.PROGRESS).read_text(encoding="utf-8"))
            self.step = int(progress["step"])
        self.processes.barrier()
        if self.is_first:
            save_config(config, self.output / CONFIG)

    def close(self) -> None:
        """Unlock the folder; a run that is iterated to its end, or left, does so itself."""
        if self._lock is not None:
            self._lock.release()

    def _write_bad_rows(self) -> None:
        bad = self.prepared.store.account.notes.get("bad", [])
        if bad:
            text = "".join(json.dumps({"error": each}) + "\n" for each in bad)
            write_text(self.output / BAD_ROWS, text)

    def _data(self, held_out: bool | None) -> FileData:
        prepared, config = self.prepared, self.config
        packing, length = prepared.packing, prepared.reading.max_length
        units = Units(prepared.store, packing, length, config.seed, held_out)
        return FileData(
            config, prepared.start.spec, units, self.processes.rank, self.processes.size
        )

    def _eval_data(self) -> FileData | None:
        """Return the held-out rows as batches; None without any."""
        prepared = self.prepared
        config = replace(self.config, seed=mix(self.config.seed, 7) % 2**31, steps=1)
        store = prepared.held_out or prepared.store
        part = None if prepared.held_out else True
        if part and not store.account.held_out:
            return None
        units = Units(store, prepared.packing, prepared.reading.max_length, config.seed, part)
        config = replace(config, data=replace(config.data, weights=()))
        return FileData(
            config, prepared.start.spec, units, self.processes.rank, self.processes.size
        )

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weighted sum, and the weighted losses `(N,)` with the row of each."""
        batch = batch.to(self.device)
        masked, model = batch.noisy.masked_BT, self.network.model
        is_auto = self.config.precision == "autocast"
        with torch.autocast(self.device.type, torch.bfloat16) if is_auto else nullcontext():
            states = masked_states(model, self.network.hidden, batch)
        weights = batch.noisy.weights_BT[masked]
        targets = batch.clean_BT[masked]
        total, losses = weighted_loss(model, states, targets, weights)
        if self.config.noise.confidence:
            share = self.config.noise.confidence * len(batch.tasks)
            total = total + share * confidence_loss(model, states, targets)
        return total, losses * weights, masked.nonzero()[:, 0]

    def train_step(self) -> tuple[float, dict[str, float], float, int]:
        """Take one optimizer step; return (loss, loss by noise level, gradient norm, tokens)."""
        config = self.config
        torch.manual_seed(mix(config.seed, self.step, 9))  # dropout of adapters
        rows, loss, tokens = config.batch_size, 0.0, 0
        sums: dict[str, list[float]] = {}
        for batch in self.data.batches(self.step):
            total, losses, row_N = self._losses(batch)
            # FSDP averages gradients over the processes; rows counts those of all of them.
            (total * self.processes.size / rows).backward()  # type: ignore[no-untyped-call]
            loss += total.item() / rows
            tokens += batch.clean_BT.numel()
            by_row = torch.zeros(len(batch.tasks)).index_add(0, row_N.cpu(), losses.cpu().float())
            for task, value in zip(batch.tasks, by_row.tolist(), strict=True):
                sums.setdefault(task, []).append(value)
        self.network.take_gradients()
        masters = self.network.masters.values()
        norm = whole(torch.nn.utils.clip_grad_norm_(masters, config.optim.clip)).item()
        loss, tokens = self._summed(loss, tokens)
        if not math.isfinite(norm) or not math.isfinite(loss):
            raise ConfigError(
                f"step {self.step}: loss {loss}, gradient norm {norm}; lower optim.lr"
            )
        scale = trapezoid(self.step, self.steps, config.optim)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
            optimizer.step()
        self.network.give_weights()
        self.network.clear_gradients()
        self.step += 1
        return loss, {task: sum(v) / len(v) for task, v in sums.items()}, norm, tokens

    def _summed(self, loss: float, tokens: int) -> tuple[float, int]:
        total, count = self.processes.sum([loss, float(tokens)])
        return total, int(count)

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Return the loss of held-out rows; None without any."""
        data = self.eval_data
        if data is None:
            return None
        per_step = -(-data.units.per_epoch // self.config.batch_size)
        losses = [
            sum(self._losses(batch)[0].item() for batch in data.batches(step))
            for step in range(min(EVAL_BATCHES, per_step))
        ]
        return self.processes.sum([sum(losses)])[0] / len(losses) / self.config.batch_size

    def __iter__(self) -> Iterator[StepLog]:
        """Train to the end: yield a log entry a step, write checkpoints, then the final folder."""
        average, watch = 0.0, self.config.watch
        if self.is_first:
            set_repeats_aside(self.output / LOG, self.step)
        path = self.output / LOG if self.is_first else Path(os.devnull)
        with self._lock or nullcontext(), path.open("a", encoding="utf-8") as log:
            loggers = make_loggers(self.config, self.output) if self.is_first else []
            while self.step < self.steps:
                began = time.perf_counter()
                loss, by_level, norm, tokens = self.train_step()
                elapsed = time.perf_counter() - began
                average = elapsed if not average else 0.95 * average + 0.05 * elapsed
                is_last = self.step == self.steps
                is_due = watch.eval_every and (self.step % watch.eval_every == 0 or is_last)
                held_out = self.evaluate() if is_due else None
                if held_out is not None:
                    self.evaluations.append((self.step, held_out))
                entry = StepLog(
                    step=self.step,
                    steps=self.steps,
                    loss=loss,
                    task_loss=by_level,
                    grad_norm=norm,
                    lr=next(iter(self.optimizers.values())).param_groups[0]["lr"],
                    tokens_per_s=tokens / elapsed,
                    eta_s=average * (self.steps - self.step),
                    eval_loss=held_out,
                )
                for logger in loggers:
                    logger.log(entry)
                log.write(json.dumps(asdict(entry)) + "\n")
                log.flush()
                if self.step % watch.checkpoint_every == 0 or is_last:
                    self.save(held_out)
                every = watch.sample_every
                if every and self.is_first and (self.step % every == 0 or is_last):
                    path = self.output / SAMPLES
                    write_samples(self.network, self.prepared, self.step, path)
                yield entry
            for logger in loggers:
                logger.close()
            self.finish()

    def save(self, eval_loss: float | None = None) -> Path:
        """Write a checkpoint of the current step; keep the last ones and the best."""
        folder = self.output / f"step-{self.step:06d}"
        if not self.is_first:
            self._write_part(checkpoint.partial_folder(folder))
            self.processes.barrier()
            return folder
        checkpoint.write_checkpoint(self.output, self.step, self._write_part, eval_loss=eval_loss)
        saved = checkpoint.checkpoints(self.output)
        kept = set(saved[-self.config.watch.keep :])
        scored = [(loss, path) for path in saved if (loss := _eval_loss(path)) is not None]
        kept |= {min(scored)[1]} if scored else set()
        for old in saved:
            if old not in kept:
                shutil.rmtree(old)
        self.processes.barrier()
        return folder

    def _write_part(self, folder: Path) -> None:
        """Write this process's part of a checkpoint into a folder that the first one makes."""
        if not self.network.is_sharded:
            self.network.write(folder, self.optimizers)
            return
        self.processes.barrier()
        save_shards(self.network.model, self.optimizers, folder)
        self.processes.barrier()

    def finish(self) -> None:
        """Write `final/`: the model in its family's format, tokenizer and card."""
        final = self.output / FINAL
        network = self.network.gathered() if self.network.is_sharded else self.network
        if not self.is_first:
            self.processes.barrier()
            return
        try:
            with new_folder(final) as partial:
                network.export(partial)
                write_card(self.config, self.prepared, self.output, partial)
        except OSError as error:
            raise ConfigError(
                f"{final} cannot be written: {error.strerror or error}; make room and give the same "
                f"command again"
            ) from None
        self.processes.barrier()


def _eval_loss(folder: Path) -> float | None:
    try:
        value = json.loads((folder / checkpoint.PROGRESS).read_text(encoding="utf-8")).get(
            "eval_loss"
        )
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, float) else None
