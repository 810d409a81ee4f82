"""Token counts of training texts, for the vocabulary that keeps the most frequent tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cells import HERE, load

from unmask.demo.tasks import training_example
from unmask.engine.token_frequencies import count
from unmask.sampling.token_frequencies import save_background

PATH = HERE / "results" / "frequencies.json"
NUM_TEXTS = 20_000


def texts() -> Iterator[str]:
    """Yield word problems of the training distribution, prompt and answer."""
    rng = random.Random("frequencies")
    for _ in range(NUM_TEXTS):
        example = training_example("word_problem", rng)
        yield f"{example.prompt}\n{example.answer}\n"


def ensure(say: Any) -> None:
    """Write the counts if they are missing, end tokens of every answer included."""
    if PATH.exists():
        return
    say("counting tokens of training texts")
    llm = load("demo", 1.0)
    counts = dict(count(llm.tokenizer, texts()))
    for end in llm.stop_ids:
        counts[end] = counts.get(end, 0) + NUM_TEXTS
    PATH.parent.mkdir(parents=True, exist_ok=True)
    save_background(PATH, counts)
