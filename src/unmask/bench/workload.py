"""Prompts of the serving benchmark, reproducible by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.bench.endpoint import EndpointQuery
from unmask.data.records import DataRow, read_rows, shown
from unmask.engine.templates import ChatFormat
from unmask.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED = ("word_problem", "sudoku", "countdown")
NAMES = ("random", "random-ids", "sharegpt", *BUNDLED)
ANSWER_TOKENS = {"word_problem": 64, "sudoku": 32, "countdown": 32}
SUDOKU_BLANKS = 8


@dataclass(frozen=True)
class WorkItem:
    """A request to send; `prompt_length` in tokens."""

    query: EndpointQuery
    prompt_length: int


@dataclass(frozen=True)
class Workload:
    """Source, number and lengths of the prompts.

    `name`: one of `NAMES`; `path`: file for sharegpt. `input_length`, `output_length`: maximum length of a
    random prompt and answer; the minimum is `range_ratio` (0 to 1) of it, as in SGLang. `output_length`
    None: 128 for random prompts, the length of the recorded answer for a file, that of the task for bundled
    prompts. `as_ids`: send token ids instead of text. `chat_template`: format texts as a user turn.
    `context_length`: skip recorded prompts that are longer, answer included.
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
        """Raise ConfigError for settings that are contradictory or out of range."""
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

    def items(
        self, tokenizer: PreTrainedTokenizerBase, rng: np.random.RandomState
    ) -> list[WorkItem]:
        """Build the requests. Raises ConfigError when the source has too few prompts."""
        self.check()
        if self.name.startswith("random"):
            return self._random(tokenizer, rng)
        if self.name == "sharegpt":
            return self._recorded(tokenizer, rng)
        return self._bundled(tokenizer)

    def _random(
        self, tokenizer: PreTrainedTokenizerBase, rng: np.random.RandomState
    ) -> list[WorkItem]:
        """Draw runs of consecutive ids, equal to those of SGLang's `random-ids` with the same seed."""
        longest = 128 if self.output_length is None else self.output_length
        shortest = max(int(self.input_length * self.range_ratio), 1)
        lengths = rng.randint(shortest, self.input_length + 1, size=self.num_prompts)
        # SGLang may draw an output length of 0, which no request can have: it becomes 1
        answers = rng.randint(int(longest * self.range_ratio), longest + 1, size=self.num_prompts)
        size = tokenizer.vocab_size
        offsets = rng.randint(0, size, size=self.num_prompts)
        items = []
        for index, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
            ids = [int((offsets[index] + index + j) % size) for j in range(length)]
            prompt = ids if self.as_ids else str(tokenizer.decode(ids))
            items.append(WorkItem(EndpointQuery(prompt, max(1, int(answer))), int(length)))
        return items

    def _recorded(
        self, tokenizer: PreTrainedTokenizerBase, rng: np.random.RandomState
    ) -> list[WorkItem]:
        """Draw first turns of recorded conversations; the recorded answers give the output lengths."""
        assert self.path is not None, "checked"
        pairs = _conversations(self.path)
        items: list[WorkItem] = []
        for index in rng.permutation(len(pairs)):
            prompt, answer = pairs[index]
            prompt = self._format(tokenizer, prompt)
            length = _count(tokenizer, prompt)
            num_tokens = self.output_length or _count(tokenizer, answer)
            if length < 2 or num_tokens < 2:
                continue  # as in SGLang
            if self.context_length is not None and length + num_tokens > self.context_length:
                continue
            items.append(WorkItem(EndpointQuery(prompt, num_tokens), length))
            if len(items) == self.num_prompts:
                return items
        raise ConfigError(
            f"{self.path} has {len(items)} conversations that can be sent, num_prompts="
            f"{self.num_prompts} are requested; use fewer"
        )

    def _bundled(self, tokenizer: PreTrainedTokenizerBase) -> list[WorkItem]:
        """Return held-out prompts of a task of the demo model."""
        from unmask.demo.tasks import held_out_set

        blanks = SUDOKU_BLANKS if self.name == "sudoku" else None
        try:
            examples = held_out_set(self.name, self.num_prompts, blanks=blanks)
        except ValueError as error:
            raise ConfigError(f"num_prompts={self.num_prompts} is too high: {error}") from None
        num_tokens = self.output_length or ANSWER_TOKENS[self.name]
        prompts = [self._format(tokenizer, each.prompt) for each in examples]
        return [
            WorkItem(EndpointQuery(prompt, num_tokens), _count(tokenizer, prompt))
            for prompt in prompts
        ]

    def _format(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        """Apply the chat template if requested, without its begin-of-text token as in SGLang's client."""
        if not self.chat_template:
            return prompt
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "apply_chat_template: the tokenizer has no chat template; leave it out"
            )
        text = ChatFormat(tokenizer).render([{"role": "user", "content": prompt}])
        return text.replace(str(tokenizer.bos_token), "") if tokenizer.bos_token else text


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def _conversations(path: Path) -> list[tuple[str, str]]:
    """Read the first two turns of every conversation of a ShareGPT-like file that has two."""
    pairs = [turns for row in read_rows(path) if (turns := _turns(row)) is not None]
    if not pairs:
        raise ConfigError(
            f"{path} has no conversation of two turns; it must be a list of "
            '{"conversations": [{"value": "..."}, {"value": "..."}]}'
        )
    return pairs


def _turns(row: DataRow) -> tuple[str, str] | None:
    """Return the texts of the first two turns; None if there are fewer, as in SGLang's client."""
    name = "conversations" if row.has("conversations") else "conversation"
    turns = row.field(name)[1] if row.has(name) else []
    if not isinstance(turns, list):
        raise row.error(f": {name}={shown(turns)} must be a list of turns")
    if len(turns) < 2:
        return None
    first, second = (
        DataRow(row.path, f"{row.place}, turn {number}", turn if isinstance(turn, dict) else {})
        for number, turn in enumerate(turns[:2], start=1)
    )
    return first.text("value", may_be_empty=True), second.text("value", may_be_empty=True)
