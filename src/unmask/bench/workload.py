"""What a serving benchmark sends: prompts with their lengths, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask.bench.endpoint import EndpointQuery
from unmask.errors import ConfigError, unknown_name

BUNDLED = ("word_problem", "sudoku", "countdown")
NAMES = ("random", "random-ids", "sharegpt", *BUNDLED)
ANSWER_TOKENS = {"word_problem": 64, "sudoku": 32, "countdown": 32}
SUDOKU_BLANKS = 8


@dataclass(frozen=True)
class WorkItem:
    """A request to send; `prompt_length` in tokens."""

    ask: EndpointQuery
    prompt_length: int


@dataclass(frozen=True)
class Workload:
    """Which prompts: `name` of `NAMES`, `path` of a ShareGPT-like file, how many, and how long.

    `input_length` and `output_length` are the most of a random prompt and answer; the least is
    `range_ratio` (0 to 1) of it, as SGLang has it. `output_length` None: 128 for random prompts, the
    recorded answer's for a file, the task's for bundled ones. `as_ids` sends token ids instead of text,
    `chat_template` texts as the tokenizer's template has a user's turn. `context_length`: recorded prompts
    that are longer together with their answer are left out.
    """

    name: str = "random"
    path: Path | None = None
    num_prompts: int = 10
    input_length: int = 128
    output_length: int | None = None
    range_ratio: float = 0.0
    as_ids: bool = False
    chat_template: bool = False
    context_length: int | None = None

    def check(self) -> None:
        """Raises ConfigError for settings that contradict or are out of range."""
        if self.name not in NAMES:
            raise unknown_name("dataset", self.name, NAMES)
        is_random = self.name.startswith("random")
        if (self.name == "sharegpt") != (self.path is not None):
            raise ConfigError(
                f"dataset {self.name!r} with dataset_path={self.path}: sharegpt needs a JSON file, the "
                f"others none"
            )
        if self.num_prompts < 1:
            raise ConfigError(f"num_prompts={self.num_prompts} must be at least 1")
        if self.input_length < 1 or (self.output_length or 1) < 1:
            raise ConfigError(
                f"lengths {self.input_length} and {self.output_length} must be at least 1"
            )
        if not 0 <= self.range_ratio <= 1:
            raise ConfigError(f"random_range_ratio={self.range_ratio:g} must be from 0 to 1")
        if self.as_ids and not is_random:
            raise ConfigError(f"token ids are sent for random prompts only, not for {self.name}")
        if self.chat_template and is_random:
            raise ConfigError(
                f"apply_chat_template has no effect on {self.name} prompts; leave it out"
            )
        if self.context_length is not None and (self.name != "sharegpt" or self.context_length < 1):
            raise ConfigError(
                f"sharegpt_context_len={self.context_length} must be at least 1 and is for dataset "
                f"sharegpt only, not for {self.name}"
            )

    def items(self, tokenizer: Any, rng: np.random.RandomState) -> list[WorkItem]:
        """The requests. Raises ConfigError when there are fewer than asked for."""
        self.check()
        if self.name.startswith("random"):
            return self._random(tokenizer, rng)
        if self.name == "sharegpt":
            return self._recorded(tokenizer, rng)
        return self._bundled(tokenizer)

    def _random(self, tokenizer: Any, rng: np.random.RandomState) -> list[WorkItem]:
        """Runs of neighboring ids, drawn as SGLang's `random-ids` does: the same seed, the same prompts."""
        most = 128 if self.output_length is None else self.output_length
        least = max(int(self.input_length * self.range_ratio), 1)
        lengths = rng.randint(least, self.input_length + 1, size=self.num_prompts)
        # a length of 0 can be drawn there; nobody can ask for no token, so here it is 1
        answers = rng.randint(int(most * self.range_ratio), most + 1, size=self.num_prompts)
        size = tokenizer.vocab_size
        offsets = rng.randint(0, size, size=self.num_prompts)
        found = []
        for index, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
            ids = [int((offsets[index] + index + j) % size) for j in range(length)]
            prompt = ids if self.as_ids else tokenizer.decode(ids)
            found.append(WorkItem(EndpointQuery(prompt, max(1, int(answer))), int(length)))
        return found

    def _recorded(self, tokenizer: Any, rng: np.random.RandomState) -> list[WorkItem]:
        """First turns of recorded conversations, in random order; answers as long as the recorded ones."""
        assert self.path is not None, "checked"
        pairs = _conversations(self.path)
        found: list[WorkItem] = []
        for index in rng.permutation(len(pairs)):
            prompt, answer = pairs[index]
            prompt = self._worded(tokenizer, prompt)
            length = len(tokenizer(prompt)["input_ids"])
            recorded = len(tokenizer(answer)["input_ids"])
            wanted = recorded if self.output_length is None else self.output_length
            if length < 2 or wanted < 2:
                continue  # SGLang leaves those out as well
            if self.context_length is not None and length + wanted > self.context_length:
                continue
            found.append(WorkItem(EndpointQuery(prompt, wanted), length))
            if len(found) == self.num_prompts:
                return found
        raise ConfigError(
            f"{self.path} has {len(found)} conversations that can be sent, num_prompts="
            f"{self.num_prompts} are wanted; use fewer"
        )

    def _bundled(self, tokenizer: Any) -> list[WorkItem]:
        """Held-out prompts of the demo model's own tasks."""
        from unmask.demo.tasks import held_out_set

        blanks = SUDOKU_BLANKS if self.name == "sudoku" else None
        try:
            examples = held_out_set(self.name, self.num_prompts, blanks=blanks)
        except ValueError as error:
            raise ConfigError(f"num_prompts={self.num_prompts} is too high: {error}") from None
        wanted = self.output_length or ANSWER_TOKENS[self.name]
        prompts = [self._worded(tokenizer, each.prompt) for each in examples]
        return [
            WorkItem(EndpointQuery(one, wanted), len(tokenizer(one)["input_ids"]))
            for one in prompts
        ]

    def _worded(self, tokenizer: Any, prompt: str) -> str:
        """The prompt as it is sent; as in SGLang's client without a template's beginning of text."""
        if not self.chat_template:
            return prompt
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "apply_chat_template: the tokenizer has no chat template; leave it out"
            )
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return str(text.replace(tokenizer.bos_token, "") if tokenizer.bos_token else text)


def _conversations(path: Path) -> list[tuple[str, str]]:
    """The first two turns of every conversation of a ShareGPT-like JSON file that has two."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from None
    pairs = []
    for record in found if isinstance(found, list) else ():
        turns = _turns(record)
        if len(turns) >= 2:
            pairs.append((turns[0], turns[1]))
    if not pairs:
        raise ConfigError(
            f"{path} has no conversation of two turns; it must be a list of "
            '{"conversations": [{"value": "..."}, {"value": "..."}]}'
        )
    return pairs


def _turns(record: Any) -> Sequence[str]:
    if not isinstance(record, dict):
        return ()
    turns = record.get("conversations") or record.get("conversation") or ()
    values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns]
    return [value for value in values if isinstance(value, str)]
