"""Reinforcement learning with verifiable rewards: diffu-GRPO.

Source: d1, arXiv:2504.12216, Algorithm 1. A step answers each prompt `group` times through the engine, sets
every answer's advantage to its reward minus the group's mean, and takes `inner` optimizer steps of the
clipped loss on one-step log-probabilities, whose prompt masks have the seed of the inner step for the old,
the new and the reference policy. Differs: the reference is the model at the start, not refreshed.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from unmask.engine.llm import LLM
from unmask.errors import ConfigError
from unmask.objectives import diffu_grpo_loss, one_step_log_probs
from unmask.options import check_fields, option
from unmask.train.noise import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.models.transformer import Transformer

Row = Mapping[str, object]
Reward = Callable[[Row, str], float]
"""The reward of an answer to a row's `prompt`."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Settings of diffu-GRPO; the defaults are d1's where they fit a small model."""

    steps: Annotated[int, option(least=1)] = 50
    prompts: Annotated[int, option(least=1)] = 4
    """Prompts of a step."""
    group: Annotated[int, option(least=2)] = 6
    """Answers to each prompt. 2: noisy advantages; many: slow steps."""
    inner: Annotated[int, option(least=1)] = 4
    """Optimizer steps on the answers of a step. 1: on-policy; many: the ratio is clipped more often."""
    gen_length: Annotated[int, option(least=1)] = 64
    block_length: Annotated[int, option(least=1)] = 32
    temperature: Annotated[float, option(above=0)] = 0.9
    """Temperature of the answers. Toward 0: equal answers, no advantages."""
    lr: Annotated[float, option(above=0)] = 1e-5
    clip: Annotated[float, option(above=0, most=1)] = 0.5
    beta: Annotated[float, option(least=0)] = 0.04
    """Weight of the divergence from the model at the start. 0: none is computed."""
    prompt_mask: Annotated[float, option(least=0, most=1)] = 0.15
    max_norm: Annotated[float, option(above=0)] = 0.2
    seed: Annotated[int, option(least=0)] = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of bounds."""
        check_fields(self)


@dataclass(frozen=True)
class GrpoStep:
    """The figures of a step: mean reward, mean loss of the inner steps, share of clipped ratios."""

    step: int
    reward: float
    loss: float
    clipped: float


def exact_match(row: Row, answer: str) -> float:
    """Return 1.0 for an answer equal to the row's `response`, spaces around it aside, else 0.0."""
    return float(answer.strip() == str(row.get("response")).strip())


class DiffuGrpo:
    """Training of a model by rewards of its answers to `rows`, each with a `prompt`.

    The model is changed in place; it must be trainable (`requires_grad`). Raises ConfigError without rows.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        reward: Reward = exact_match,
        config: GrpoConfig | None = None,
    ) -> None:
        self.config = GrpoConfig() if config is None else config
        if not rows or not all(isinstance(row.get("prompt"), str) for row in rows):
            raise ConfigError("rows must be at least one mapping with the text 'prompt'")
        self.model, self.rows, self.reward = model, list(rows), reward
        self.llm = LLM(model, tokenizer=tokenizer, pack_weights=False)
        self.reference = copy.deepcopy(model).requires_grad_(False) if self.config.beta else None
        trained = [value for value in model.parameters() if value.requires_grad]
        if not trained:
            raise ConfigError(
                "the model has no trainable parameter; call model.requires_grad_(True)"
            )
        self.optimizer = torch.optim.AdamW(
            trained, lr=self.config.lr, betas=(0.9, 0.99), weight_decay=0.1
        )
        self.step = 0

    def answers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and answer flags `(B, T)` of a step's answers, and their rewards `(B,)`.

        A row's answer is what the engine decoded, to the end of its canvas; padding is no answer.
        """
        config = self.config
        order = torch.randperm(
            len(self.rows),
            generator=torch.Generator().manual_seed(
                mix(config.seed, self.step * config.prompts // len(self.rows))
            ),
        )
        first = self.step * config.prompts
        chosen = [
            self.rows[int(order[(first + k) % len(self.rows)])] for k in range(config.prompts)
        ]
        repeated = [row for row in chosen for _ in range(config.group)]
        outputs = self.llm.generate(
            [str(row["prompt"]) for row in repeated],
            gen_length=config.gen_length,
            block_length=config.block_length,
            temperature=config.temperature,
            seed=mix(config.seed, self.step) % 2**31,
            stop_at_eos=False,
        )
        longest = max(len(out.canvas_ids) for out in outputs)
        ids = torch.full((len(outputs), longest), self.model.spec.eos_id)
        flags = torch.zeros(ids.shape, dtype=torch.bool)
        for i, out in enumerate(outputs):
            ids[i, : len(out.canvas_ids)] = torch.tensor(out.canvas_ids)
            flags[i, out.prompt_length : len(out.canvas_ids)] = True
        rewards = [
            float(self.reward(row, out.text)) for row, out in zip(repeated, outputs, strict=True)
        ]
        return ids, flags, torch.tensor(rewards)

    def train_step(self) -> GrpoStep:
        """Answer, judge, and take the inner steps."""
        config = self.config
        ids, flags, rewards = self.answers()
        groups = rewards.view(-1, config.group)
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        losses, clipped = [0.0], [0.0]
        if bool(advantages.abs().max() > 0):
            seeds = [mix(config.seed, self.step, k, 1) for k in range(config.inner)]
            with torch.no_grad():
                old = [self._log_probs(self.model, ids, flags, seed) for seed in seeds]
            losses, clipped = [], []
            for seed, before in zip(seeds, old, strict=True):
                with torch.no_grad():
                    known = None
                    if self.reference is not None:
                        known = self._log_probs(self.reference, ids, flags, seed)
                new = self._log_probs(self.model, ids, flags, seed)
                result = diffu_grpo_loss(
                    new, before, known, advantages, flags, clip=config.clip, beta=config.beta
                )
                result.loss.backward()  # type: ignore[no-untyped-call]
                trained = self.optimizer.param_groups[0]["params"]
                torch.nn.utils.clip_grad_norm_(trained, config.max_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                losses.append(result.loss.item())
                clipped.append(result.clipped_share)
        self.step += 1
        means = (statistics.fmean(losses), statistics.fmean(clipped))
        return GrpoStep(self.step, float(rewards.mean()), *means)

    def _log_probs(self, model: Transformer, ids: Tensor, flags: Tensor, seed: int) -> Tensor:
        return one_step_log_probs(model, ids, flags, seed=seed, prompt_mask=self.config.prompt_mask)
