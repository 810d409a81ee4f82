"""Batches of the demo tasks as a pure function of (seed, step, micro-batch).

Nothing is read in order, so a resumed run needs no data state to see the same batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.demo.tasks import Example, training_example
from unmask.train.corrupt import Noisy, block_state, corrupt, random_length
from unmask.train.recipe import Recipe

if TYPE_CHECKING:
    from unmask.models.spec import ModelSpec

SKILLS = ("word_problem", "sudoku", "countdown", "sentence")


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `clean_BT` targets and their corruption."""

    task: str
    clean_BT: Tensor
    noisy: Noisy


@dataclass(frozen=True)
class Row:
    """Token ids and which of them may be masked (None: from `prompt_length` on, padding too)."""

    ids: list[int]
    prompt_length: int
    maskable: list[bool] | None = None


class DemoData:
    """Draws corrupted micro-batches for a recipe."""

    def __init__(self, recipe: Recipe, spec: ModelSpec, tokenizer: Any) -> None:
        self.recipe, self.spec, self.tokenizer = recipe, spec, tokenizer
        self.bos_id = tokenizer.bos_token_id
        self.turn_end_id = tokenizer.convert_tokens_to_ids(spec.turn_end)
        self.is_digit = torch.zeros(spec.vocab_size, dtype=torch.bool)
        self.is_digit[tokenizer.convert_tokens_to_ids(list("0123456789"))] = True

    def task_of(self, step: int, rng: random.Random) -> tuple[str, int]:
        """The task and curriculum level of a micro-batch at a step."""
        recipe = self.recipe
        progress = min(1.0, step / max(1, recipe.drill_steps))
        drills = recipe.drill_start + (recipe.drill_end - recipe.drill_start) * progress
        level = 1 + sum(step >= at for at in recipe.level_steps)
        if rng.random() < drills:
            return "drill", level
        return rng.choices(SKILLS, weights=recipe.mix)[0], level

    def batch(self, step: int, micro: int) -> Batch:
        """Micro-batch `micro` of optimizer step `step`."""
        rng = random.Random(f"{self.recipe.seed} {step} {micro}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        task, level = self.task_of(step, rng)
        rows, length = self._rows(task, level, rng)
        ids, maskable = self._pad(rows, length)
        if task == "sentence":
            length = random_length(length, generator, self.recipe.random_length)
            ids, maskable = ids[:, :length], maskable[:, :length]
        noisy = self._corrupt(task, ids, maskable, rng, generator)
        return Batch(task, ids, noisy)

    def _corrupt(
        self, task: str, ids: Tensor, maskable: Tensor, rng: random.Random, gen: torch.Generator
    ) -> Noisy:
        recipe, mask_id = self.recipe, self.spec.mask_id
        if task == "drill":
            levels = 0.3 + 0.7 * torch.rand(len(ids), 1, generator=gen)
            return corrupt(ids, maskable, mask_id, gen, t_B1=levels, count_weight=True)
        draw = rng.random() if task != "sentence" else 1.0
        if draw < recipe.block_share:
            return block_state(ids, maskable, mask_id, gen, recipe.block_length)
        if task == "word_problem" and draw < recipe.block_share + recipe.digit_share:
            levels = 0.3 + 0.7 * torch.rand(len(ids), 1, generator=gen)
            digits = maskable & self.is_digit[ids]
            return corrupt(ids, digits, mask_id, gen, t_B1=levels, count_weight=True)
        return corrupt(
            ids,
            maskable,
            mask_id,
            gen,
            count_weight=recipe.count_weight,
            stratified=recipe.stratified,
        )

    def _rows(self, task: str, level: int, rng: random.Random) -> tuple[list[Row], int]:
        """Rows of similar length that fill the token budget, and the padded length."""
        guess = {"word_problem": 64, "sudoku": 48, "countdown": 40, "sentence": 24, "drill": 96}[
            task
        ]
        budget = self.recipe.tokens_per_micro_batch
        pool = [training_example(task, rng, level) for _ in range(2 * budget // guess)]
        rows = sorted(self._encode(pool), key=lambda row: len(row.ids))
        if rng.random() < 0.5:
            rows = rows[len(rows) // 2 :]
        else:
            rows = rows[: len(rows) // 2]
        longest = len(rows[-1].ids) + self._tail(task, rng)
        multiple = self.recipe.length_multiple
        length = min(-(-longest // multiple) * multiple, self.spec.max_length)
        rng.shuffle(rows)
        count = max(1, budget // length)
        return [rows[i % len(rows)] for i in range(min(count, len(rows)))], length

    def _tail(self, task: str, rng: random.Random) -> int:
        """Extra end-of-sequence positions, so that long canvases are seen too."""
        if task in ("drill", "sentence"):
            return 0
        draw = rng.random()
        if draw < 0.6:
            return 0
        if draw < 0.88:
            return rng.randint(1, 32)
        if draw < 0.98:
            return rng.randint(32, 160)
        return rng.randint(160, 480)

    def _encode(self, examples: list[Example]) -> list[Row]:
        encode = self.tokenizer._tokenizer.encode_batch
        prompts = encode([example.prompt for example in examples], add_special_tokens=False)
        answers = encode([example.answer for example in examples], add_special_tokens=False)
        rows = []
        for example, prompt, answer in zip(examples, prompts, answers, strict=True):
            if example.maskable is not None:
                free = [
                    any(start < b and a < end for a, b in example.maskable)
                    for start, end in answer.offsets
                ]
                rows.append(Row([self.bos_id, *answer.ids], 1, [False, *free]))
            elif not example.prompt:
                rows.append(Row([self.bos_id, *answer.ids, self.spec.eos_id], 0))
            else:
                head = [self.bos_id, *prompt.ids, self.turn_end_id]
                rows.append(Row([*head, *answer.ids, self.turn_end_id], len(head)))
        return rows

    def _pad(self, rows: list[Row], length: int) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(rows), length), self.spec.eos_id)
        maskable = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            if row.maskable is None:
                maskable[i, row.prompt_length :] = True
            else:
                maskable[i, : len(row.maskable)] = torch.tensor(row.maskable)
        return ids, maskable
