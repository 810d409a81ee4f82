"""A training on data files: steps, evaluation, samples, checkpoints, the final folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from unmask.durable import FolderLock, new_folder, write_text
from unmask.engine.llm import LLM
from unmask.errors import ConfigError
from unmask.objectives import confidence_loss
from unmask.train import checkpoint
from unmask.train.batches import FileData, Units
from unmask.train.card import write_card
from unmask.train.config import TrainConfig, check_same, save_config
from unmask.train.dataset import Batch
from unmask.train.grpo import DiffuGrpo
from unmask.train.head import weighted_loss
from unmask.train.loop import LOG, StepLog, set_repeats_aside
from unmask.train.network import Network
from unmask.train.noise import mix
from unmask.train.optim import make_optimizers, trapezoid
from unmask.train.predict import masked_states
from unmask.train.prepare import Prepared, prepare
from unmask.train.ranks import join, load_shards, save_shards, whole
from unmask.train.rewards import Reward, find_reward, prompt_rows
from unmask.train.store import HELD_OUT
from unmask.train.watch import SAMPLES, make_loggers, write_samples

Scorer = Callable[[LLM], Mapping[str, float]]
"""Numbers by name of a model in training, such as its accuracy in tasks."""
CONFIG, FINAL, BAD_ROWS = "config.yaml", "final", "bad_rows.jsonl"
HELD_OUT_REWARD = "held_out_reward"
EVAL_PROMPTS = 64
"""Maximum number of held-out prompts whose greedy answers are judged."""
NUM_LEVELS = 4
"""Number of equal intervals of noise levels whose losses are logged."""
EVAL_BATCHES = 4
"""Number of held-out batches whose loss is measured, the same ones with the same noise every time."""


@dataclass(frozen=True)
class StepFigures:
    """The figures of an optimizer step: mean loss, losses by noise level, gradient norm, tokens, scores.

    `by_level`: the mean cross-entropy in nats, without weights, of the tokens that were masked with a
    probability in each quarter of [0, 1], such as t0.25-0.5; of this process's rows.
    """

    loss: float
    by_level: dict[str, float]
    norm: float
    tokens: int
    scores: dict[str, float] = field(default_factory=dict)


class FileTrainer:
    """A run of settings on data files; iterate over it to train.

    The folder is locked while the object exists. `reward`: function of objective=diffu_grpo instead of
    that of `rl.reward`. `score`: function of the model, called every `watch.task_every` steps, whose
    numbers are logged. Raises ConfigError and ModelError.
    """

    def __init__(
        self, config: TrainConfig, reward: Reward | None = None, score: Scorer | None = None
    ) -> None:
        self.reward, self.score = reward, score
        if config.watch.tasks and score is None:
            raise ConfigError(
                "watch.tasks is of the command `unmask train`; in Python give score=, such as "
                "unmask.evals.while_training.task_scorer(['countdown'])"
            )
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
        self.policy = self._policy()
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
        """Return the weighted sum, the plain losses `(N,)` and the noise level of each, on the CPU."""
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
        levels = batch.noisy.levels_BT
        level_N = torch.ones(len(losses)) if levels is None else levels[masked.cpu()]
        return total, losses.float().cpu(), level_N

    def train_step(self) -> StepFigures:
        """Take one optimizer step, with objective=diffu_grpo the inner steps of one round of answers."""
        torch.manual_seed(mix(self.config.seed, self.step, 9))  # dropout of adapters
        if self.policy is not None:
            return self._reward_step(self.policy)
        rows, loss, tokens = self.config.batch_size, 0.0, 0
        sums, counts = torch.zeros(NUM_LEVELS), torch.zeros(NUM_LEVELS)
        for batch in self.data.batches(self.step):
            total, losses, level_N = self._losses(batch)
            # FSDP averages gradients over the processes; rows counts those of all of them.
            (total * self.processes.size / rows).backward()  # type: ignore[no-untyped-call]
            loss += total.item() / rows
            tokens += batch.clean_BT.numel()
            bucket = (level_N * NUM_LEVELS).long().clamp(max=NUM_LEVELS - 1)
            sums.index_add_(0, bucket, losses)
            counts.index_add_(0, bucket, torch.ones(len(losses)))
        norm = self._optimize()
        loss, tokens = self._summed(loss, tokens)
        self._finish_step(loss, norm)
        by_level = {
            f"t{k / NUM_LEVELS:g}-{(k + 1) / NUM_LEVELS:g}": (sums[k] / counts[k]).item()
            for k in range(NUM_LEVELS)
            if counts[k]
        }
        return StepFigures(loss, by_level, norm, tokens)

    def _optimize(self) -> float:
        """Apply and clear the gradients; return their norm before clipping."""
        self.network.take_gradients()
        masters = self.network.masters.values()
        norm = whole(torch.nn.utils.clip_grad_norm_(masters, self.config.optim.clip)).item()
        scale = trapezoid(self.step, self.steps, self.config.optim)
        if math.isfinite(norm):
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * scale
                optimizer.step()
        self.network.give_weights()
        self.network.clear_gradients()
        return norm

    def _finish_step(self, loss: float, norm: float) -> None:
        """Count the step. Raises ConfigError where loss or gradients are no numbers."""
        if not math.isfinite(norm) or not math.isfinite(loss):
            raise ConfigError(
                f"step {self.step}: loss {loss}, gradient norm {norm}; lower optim.lr"
            )
        self.step += 1

    def _policy(self) -> DiffuGrpo | None:
        """Return the policy of objective=diffu_grpo and read its prompts; the reference is made here."""
        config, start = self.config, self.prepared.start
        if config.objective != "diffu_grpo":
            return None
        room = start.spec.max_length - config.rl.gen_length
        reward = self.reward or find_reward(config.rl.reward)
        rows, held_out = prompt_rows(config, self.prepared, room, reward)
        flags = [bool(flag & HELD_OUT) for flag in self.prepared.store.flags]
        chosen = held_out or [row for row, is_out in zip(rows, flags, strict=True) if is_out]
        self.prompts, self.eval_prompts = rows, chosen[:EVAL_PROMPTS]
        self.network.model.eval()  # answers and log-probabilities are those of decoding
        return DiffuGrpo(
            self.network.model,
            start.tokenizer,
            reward,
            config.rl,
            rows=config.micro_batch_size,
            hidden=self.network.hidden,
            autocast=config.precision == "autocast",
        )

    def _reward_step(self, policy: DiffuGrpo) -> StepFigures:
        """Answer the prompts of a step, judge the answers, and take the inner steps."""
        config, step = self.config, self.step
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        prompts = [self.prompts[self.data.units.index(k, config.data.weights)] for k in numbers]
        seed = mix(config.seed, step, 11)
        rl = config.rl
        rollout = policy.answer(prompts, seed % 2**31, group=rl.group, temperature=rl.temperature)
        done = policy.update(rollout, seed, self._optimize)
        self._finish_step(done.loss, done.norm)
        scores = {"reward": float(rollout.rewards_B.mean()), "clipped": done.clipped}
        tokens = int(rollout.inside_BT.sum())
        return StepFigures(done.loss, {}, done.norm, tokens, scores)

    def _summed(self, loss: float, tokens: int) -> tuple[float, int]:
        total, count = self.processes.sum([loss, float(tokens)])
        return total, int(count)

    @torch.no_grad()
    def evaluate_rewards(self) -> dict[str, float]:
        """Return the mean reward of greedy answers to held-out prompts; nothing without any."""
        if self.policy is None or not self.eval_prompts:
            return {}
        found = self.policy.answer(self.eval_prompts, 0, group=1, temperature=0.0)
        return {HELD_OUT_REWARD: float(found.rewards_B.mean())}

    @torch.no_grad()
    def _task_scores(self, score: Scorer) -> dict[str, float]:
        """Return the numbers of `score` for the model as it is."""
        model = self.network.model
        was_training = model.training
        llm = LLM(model.eval(), tokenizer=self.prepared.start.tokenizer, pack_weights=False)
        try:
            return dict(score(llm))
        finally:
            model.train(was_training)

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Return the loss of held-out rows; None without any, and with objective=diffu_grpo."""
        data = self.eval_data if self.policy is None else None
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
                done = self.train_step()
                elapsed = time.perf_counter() - began
                average = elapsed if not average else 0.95 * average + 0.05 * elapsed
                is_last = self.step == self.steps
                is_due = watch.eval_every and (self.step % watch.eval_every == 0 or is_last)
                held_out, scores = None, done.scores
                if is_due:
                    held_out, scores = self.evaluate(), {**scores, **self.evaluate_rewards()}
                is_scored = self.step % (watch.task_every or self.steps) == 0 or is_last
                if self.score is not None and is_scored:
                    scores = {**scores, **self._task_scores(self.score)}
                if held_out is not None:
                    self.evaluations.append((self.step, held_out))
                entry = StepLog(
                    step=self.step,
                    steps=self.steps,
                    loss=done.loss,
                    task_loss=done.by_level,
                    grad_norm=done.norm,
                    lr=next(iter(self.optimizers.values())).param_groups[0]["lr"],
                    tokens_per_s=done.tokens / elapsed,
                    eta_s=average * (self.steps - self.step),
                    eval_loss=held_out,
                    scores=scores,
                )
                for logger in loggers:
                    logger.log(entry)
                log.write(json.dumps(asdict(entry)) + "\n")
                log.flush()
                if self.step % watch.checkpoint_every == 0 or is_last:
                    self.save(held_out, scores.get(HELD_OUT_REWARD))
                every = watch.sample_every
                if every and self.is_first and (self.step % every == 0 or is_last):
                    path = self.output / SAMPLES
                    write_samples(self.network, self.prepared, self.step, path)
                yield entry
            for logger in loggers:
                logger.close()
            self.finish()

    def save(self, eval_loss: float | None = None, eval_reward: float | None = None) -> Path:
        """Write a checkpoint of the current step; keep the last ones and the best."""
        folder = self.output / f"step-{self.step:06d}"
        if not self.is_first:
            self._write_part(checkpoint.partial_folder(folder))
            self.processes.barrier()
            return folder
        checkpoint.write_checkpoint(
            self.output, self.step, self._write_part, eval_loss=eval_loss, eval_reward=eval_reward
        )
        saved = checkpoint.checkpoints(self.output)
        kept = set(saved[-self.config.watch.keep :])
        scored = [(badness, path) for path in saved if (badness := _badness(path)) is not None]
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


def _badness(folder: Path) -> float | None:
    """Return a checkpoint's held-out loss, or its negative held-out reward; None if it has neither."""
    try:
        progress = json.loads((folder / checkpoint.PROGRESS).read_text(encoding="utf-8"))
        loss, reward = progress.get("eval_loss"), progress.get("eval_reward")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(reward, float):
        return -reward
    return loss if isinstance(loss, float) else None
