"""Reinforcement learning with verifiable rewards: diffu-GRPO.

Source: d1, arXiv:2504.12216, Algorithm 1. A step answers each prompt `group` times through the engine, sets
every answer's advantage to its reward minus the group's mean, and takes `inner` optimizer steps of the
clipped loss on one-step log-probabilities, whose prompt masks have the seed of the inner step for the old,
the new and the reference policy. Differs: the reference is the model at the start, not refreshed; a step
whose rewards are equal in every group changes nothing, as it has no advantages.

Letters: B answers, T positions.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.engine.llm import LLM
from unmask.engine.request_builder import parse_method
from unmask.method import DEFAULT_CACHE
from unmask.objectives import diffu_grpo_loss, one_step_log_probs
from unmask.own_code import Reference
from unmask.train.config import RlConfig
from unmask.train.noise import mix
from unmask.train.rewards import PromptRow, Reward, checked_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unmask.models.transformer import Transformer


@dataclass(frozen=True)
class Rollout:
    """Answers to prompts, those to one prompt in a row.

    `ids_BT`: whole canvases, then padding. `answer_BT`: the answer with the token that ends it, whose
    log-probabilities are trained. `canvas_BT`: everything that is not the prompt. `inside_BT`: not padding.
    """

    ids_BT: Tensor
    answer_BT: Tensor
    canvas_BT: Tensor
    inside_BT: Tensor
    rewards_B: Tensor
    texts: list[str]

    def advantages(self, group: int) -> Tensor:
        """Return each reward minus the mean of its group, `(B,)`."""
        groups = self.rewards_B.view(-1, group)
        return (groups - groups.mean(1, keepdim=True)).flatten()


@dataclass(frozen=True)
class Update:
    """The means over the inner steps: loss, share of clipped ratios, gradient norm; 0 where none was
    taken."""

    loss: float = 0.0
    clipped: float = 0.0
    norm: float = 0.0


class DiffuGrpo:
    """The policy `model` with its reference, a copy that is made now unless `beta` is 0.

    `hidden`: the model's method that is trained, perhaps compiled. `rows` of a forward are trained at once,
    in bfloat16 with `autocast`. The model must be in evaluation mode.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: PreTrainedTokenizerBase | None,
        reward: Reward,
        config: RlConfig,
        *,
        rows: int = 8,
        hidden: Callable[..., Tensor] | None = None,
        autocast: bool = False,
    ) -> None:
        self.model, self.reward, self.config = model, reward, config
        self.rows, self.hidden, self.autocast = rows, hidden, autocast
        self.llm = LLM(model, tokenizer=tokenizer, pack_weights=False)
        self.reference = copy.deepcopy(model).requires_grad_(False) if config.beta else None

    def answer(
        self, prompts: Sequence[PromptRow], seed: int, *, group: int, temperature: float
    ) -> Rollout:
        """Decode `group` answers to every prompt, answer i with the seed `seed` + i, and judge them."""
        config = self.config
        knobs: dict[str, object] = {"temperature": temperature}
        if config.block_length is not None:
            knobs["block_length"] = config.block_length
        method = parse_method(
            Reference(config.decoder), DEFAULT_CACHE, None, knobs, gen_length=config.gen_length
        )
        with torch.no_grad():
            outputs = self.llm.generate(
                [row.ids for row in prompts],
                method,
                gen_length=config.gen_length,
                seed=seed,
                n=group,
                progress=False,
            )
        shape = (len(outputs), max(len(out.canvas_ids) for out in outputs))
        ids = torch.full(shape, self.model.spec.eos_id)
        answer, canvas, inside = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for i, out in enumerate(outputs):
            begin, end = out.prompt_length, len(out.canvas_ids)
            ids[i, :end] = torch.tensor(out.canvas_ids)
            inside[i, :end], canvas[i, begin:end] = True, True
            answer[i, begin : begin + len(out.token_ids) + (out.finish_reason == "stop")] = True
        rows = [row for row in prompts for _ in range(group)]
        rewards = [
            checked_reward(self.reward, row, out.text)
            for row, out in zip(rows, outputs, strict=True)
        ]
        device = next(self.model.parameters()).device
        return Rollout(
            ids.to(device),
            answer.to(device),
            canvas.to(device),
            inside.to(device),
            torch.tensor(rewards, device=device),
            [out.text for out in outputs],
        )

    def update(self, rollout: Rollout, seed: int, optimize: Callable[[], float]) -> Update:
        """Take the inner steps: `optimize` applies the gradients of each and returns their norm."""
        config = self.config
        advantages = rollout.advantages(config.group)
        if not bool(advantages.abs().max() > 0):
            return Update()
        parts = list(self._parts(len(advantages)))
        seeds = [[mix(seed, k, m) for m in range(len(parts))] for k in range(config.inner)]
        with torch.no_grad():
            old = [
                [
                    self.log_probs(self.model, rollout, rows, each)
                    for rows, each in zip(parts, own, strict=True)
                ]
                for own in seeds
            ]
        steps: list[Update] = []
        for own, before in zip(seeds, old, strict=True):
            loss, clipped = 0.0, 0.0
            for rows, each, old_BT in zip(parts, own, before, strict=True):
                known = None
                if self.reference is not None:
                    with torch.no_grad():
                        known = self.log_probs(self.reference, rollout, rows, each)
                new = self.log_probs(self.model, rollout, rows, each)
                result = diffu_grpo_loss(
                    new,
                    old_BT,
                    known,
                    advantages[rows],
                    rollout.answer_BT[rows],
                    clip=config.clip,
                    beta=config.beta,
                )
                share = len(new) / len(advantages)
                (result.loss * share).backward()  # type: ignore[no-untyped-call]
                loss += result.loss.item() * share
                clipped += result.clipped_share * share
            steps.append(Update(loss, clipped, optimize()))
        return Update(
            statistics.fmean(step.loss for step in steps),
            statistics.fmean(step.clipped for step in steps),
            statistics.fmean(step.norm for step in steps),
        )

    def _parts(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.rows):
            yield slice(start, start + self.rows)

    def log_probs(self, model: Transformer, rollout: Rollout, rows: slice, seed: int) -> Tensor:
        """Return the one-step log-probabilities of some rows, `(rows, T)` float32."""
        device = rollout.ids_BT.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            return one_step_log_probs(
                model,
                rollout.ids_BT[rows],
                rollout.answer_BT[rows],
                seed=seed,
                prompt_mask=self.config.prompt_mask,
                canvas=rollout.canvas_BT[rows],
                inside=rollout.inside_BT[rows],
                hidden=self.hidden if model is self.model else None,
            )
