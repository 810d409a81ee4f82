"""The demo tasks' batches as a pure function of (seed, step).

A step's rows are drawn task by task, sorted by length and cut into micro-batches, so that every step
sees the whole mixture and little padding. Nothing is read in order: a resumed run needs no data state.
Sentences are pre-training text and make a micro-batch of their own; everything else is fine-tuning.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.demo.tasks import Example, training_example
from unmask.demo.tokenizer import MASK, TURN_END
from unmask.train.corrupt import Noisy, block_noise, block_state, corrupt, draw_t, random_length
from unmask.train.dataset import Batch
from unmask.train.recipe import Recipe
from unmask.train.start import SpecialTokens, network_spec

if TYPE_CHECKING:
    from unmask.models.spec import ModelSpec

SKILLS = ("word_problem", "sudoku", "countdown", "drill")
BLOCK_LENGTHS = (8, 16, 32, 64)
STATES = ("any", "block", "digits", "prefix", "full")
NEXT_LENGTHS = (1, 2, 4, 8)
"""Numbers of tokens after a known prefix that carry most of the weight."""


@dataclass(frozen=True)
class Row:
    """Token ids, and a mask of those that may be masked (None: from `prompt_length` on, padding too)."""

    task: str
    ids: list[int]
    prompt_length: int
    maskable: list[bool] | None = None


def demo_spec(recipe: Recipe, tokenizer: Any) -> ModelSpec:
    """Return the recipe's network over the demo tokenizer's vocabulary."""
    return network_spec(
        recipe,
        SpecialTokens(
            vocab_size=len(tokenizer),
            mask_id=int(tokenizer.convert_tokens_to_ids(MASK)),
            eos_id=int(tokenizer.eos_token_id),
            turn_end=TURN_END,
        ),
        shift=recipe.shift_logits,
        block_size=recipe.block_size,
    )


class DemoData:
    """The demo tasks as a `Dataset`: corrupted micro-batches for a recipe."""

    def __init__(self, recipe: Recipe, spec: ModelSpec, tokenizer: Any) -> None:
        self.recipe, self.spec, self.tokenizer = recipe, spec, tokenizer
        self.is_published = recipe.objective == "llada"
        self.bos_id = tokenizer.bos_token_id
        self.turn_end_id = tokenizer.convert_tokens_to_ids(TURN_END)
        self.is_digit = torch.zeros(spec.vocab_size, dtype=torch.bool)
        self.is_digit[tokenizer.convert_tokens_to_ids(list("0123456789"))] = True

    def mixture(self, step: int) -> tuple[list[float], int]:
        """Return the shares of `SKILLS` among a step's fine-tuning rows, and the curriculum's level."""
        recipe = self.recipe
        mix = recipe.reading_mix if step >= recipe.reading_at else recipe.mix
        progress = min(1.0, step / max(1, recipe.drill_steps))
        drills = recipe.drill_start + (recipe.drill_end - recipe.drill_start) * progress
        others = [share * (1 - drills) / sum(mix[:3]) for share in mix[:3]]
        return [*others, drills], 1 + sum(step >= at for at in recipe.level_steps)

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step`: sentences (if any) first, then the other tasks."""
        rng = random.Random(f"{self.recipe.seed} {step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        shares, level = self.mixture(step)
        recipe = self.recipe
        num_sentences = round(recipe.rows_per_step * recipe.mix[3] / sum(recipe.mix))
        num_tuning = recipe.rows_per_step - num_sentences
        tasks = rng.choices(SKILLS, weights=shares, k=num_tuning)
        rows = self._encode([training_example(task, rng, level) for task in tasks])
        rows.sort(key=lambda row: len(row.ids))
        batches = []
        if num_sentences:
            drawn = [training_example("sentence", rng, level) for _ in range(num_sentences)]
            batches.append(self._pretraining(self._encode(drawn), generator))
        cuts = [num_tuning * k // recipe.micro_batches for k in range(recipe.micro_batches + 1)]
        for start, end in zip(cuts, cuts[1:], strict=False):
            if start < end:
                batches.append(self._fine_tuning(rows[start:end], step, rng, generator))
        return batches

    def _pretraining(self, rows: list[Row], generator: torch.Generator) -> Batch:
        ids, maskable = self._pad(rows, self._round(max(len(row.ids) for row in rows)))
        length = random_length(ids.shape[1], generator, self.recipe.random_length)
        noisy = self._corrupt(ids[:, :length], maskable[:, :length], generator)
        return Batch([row.task for row in rows], ids[:, :length], noisy)

    def _fine_tuning(
        self, rows: list[Row], step: int, rng: random.Random, generator: torch.Generator
    ) -> Batch:
        """Corrupt every row into a state of the recipe (`docs/decisions/0004-the-demo-recipe.md`)."""
        recipe = self.recipe
        length = self._round(len(rows[-1].ids) + _tail(rng))
        rows = rng.sample(rows, min(len(rows), max(1, recipe.tokens_per_micro_batch // length)))
        ids, maskable = self._pad(rows, length)
        if self.is_published or self.spec.block_size is not None:
            return Batch([row.task for row in rows], ids, self._corrupt(ids, maskable, generator))
        states = [self._state_of(row, step, rng) for row in rows]
        blocks = torch.tensor([[rng.choice(BLOCK_LENGTHS)] for _ in rows])
        digits = maskable & self.is_digit[ids]
        t_B1 = 0.3 + 0.7 * draw_t(len(rows), generator, stratified=True)
        drawn = {
            "any": self._corrupt(ids, maskable, generator),
            "digits": corrupt(
                ids, digits, self.spec.mask_id, generator, t_B1=t_B1, count_weight=True
            ),
            "block": block_state(ids, maskable, self.spec.mask_id, generator, blocks),
        }
        if step >= recipe.reading_at:
            ones = torch.ones(len(rows), 1)
            near = torch.tensor([[rng.choice(NEXT_LENGTHS)] for _ in rows])
            drawn["prefix"] = block_state(
                ids, maskable, self.spec.mask_id, generator, near, t_B1=ones
            )
            drawn["full"] = corrupt(
                ids, maskable, self.spec.mask_id, generator, t_B1=ones, count_weight=True
            )
        noisy = Noisy(
            torch.stack([drawn[state].ids_BT[i] for i, state in enumerate(states)]),
            torch.stack([drawn[state].weights_BT[i] for i, state in enumerate(states)]),
        )
        return Batch([row.task for row in rows], ids, noisy)

    def _state_of(self, row: Row, step: int, rng: random.Random) -> str:
        if row.task == "drill":
            return "digits"
        if step >= self.recipe.reading_at:
            state = rng.choices(STATES, weights=self.recipe.reading_states)[0]
            return "any" if state == "digits" and row.task != "word_problem" else state
        draw = rng.random()
        if draw < self.recipe.block_share:
            return "block"
        wants_digits = draw < self.recipe.block_share + self.recipe.digit_share
        return "digits" if wants_digits and row.task == "word_problem" else "any"

    def _corrupt(self, ids: Tensor, maskable: Tensor, generator: torch.Generator) -> Noisy:
        if self.is_published:
            return corrupt(ids, maskable, self.spec.mask_id, generator)
        if self.spec.block_size is not None:
            size, full_share = self.spec.block_size, self.recipe.full_blocks
            return block_noise(ids, maskable, self.spec.mask_id, generator, size, full_share)
        return corrupt(
            ids,
            maskable,
            self.spec.mask_id,
            generator,
            count_weight=self.recipe.count_weight,
            stratified=self.recipe.stratified,
        )

    def _round(self, length: int) -> int:
        multiple = self.recipe.length_multiple
        return min(-(-length // multiple) * multiple, self.spec.max_length)

    def _encode(self, examples: list[Example]) -> list[Row]:
        encode = self.tokenizer.backend_tokenizer.encode_batch
        prompts = encode([example.prompt for example in examples], add_special_tokens=False)
        answers = encode([example.answer for example in examples], add_special_tokens=False)
        rows = []
        for example, prompt, answer in zip(examples, prompts, answers, strict=True):
            if example.maskable is not None:
                free = [
                    any(start < b and a < end for a, b in example.maskable)
                    for start, end in answer.offsets
                ]
                rows.append(Row(example.task, [self.bos_id, *answer.ids], 1, [False, *free]))
            elif not example.prompt:
                ids = [self.bos_id, *answer.ids, self.spec.eos_id]
                rows.append(Row(example.task, ids, 0))
            else:
                head = [self.bos_id, *prompt.ids, self.turn_end_id]
                ids = [*head, *answer.ids, self.turn_end_id]
                rows.append(Row(example.task, ids, len(head)))
        return rows

    def _pad(self, rows: list[Row], length: int) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(rows), length), self.spec.eos_id)
        maskable = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            if row.maskable is None or self.is_published:
                maskable[i, row.prompt_length :] = True
            else:
                maskable[i, : len(row.maskable)] = torch.tensor(row.maskable)
        if self.spec.shift_logits:
            maskable[:, 0] = False  # no row comes before it
        return ids, maskable


def _tail(rng: random.Random) -> int:
    """Draw a number of extra end-of-text positions, so that training covers long canvases."""
    draw = rng.random()
    if draw < 0.8:
        return 0
    if draw < 0.95:
        return rng.randint(1, 40)
    if draw < 0.995:
        return rng.randint(40, 128)
    return rng.randint(128, 400)
