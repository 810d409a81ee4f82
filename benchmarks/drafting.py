"""When drafts pay: `speculative` with each drafter, and without loss, beside the decoder it wraps.

    python benchmarks/drafting.py [--test 24] [--small FOLDER]

Prints a Markdown table. `--small`: a smaller model with the same tokenizer, such as one trained by
`unmask train recipe=demo d_model=128 d_ff=384`. Without it the model drafts for itself, which is what no
smaller model can exceed. Minutes of one core; counts do not depend on the machine.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import unmask
from unmask.canvas import Canvas, Draft
from unmask.demo.tasks import Example, check, held_out_set, training_example
from unmask.engine.drafter import draft_by
from unmask.engine.outputs import Output

GEN_LENGTH, BATCH, OWN_OUTPUTS = 64, 12, 96
THRESHOLD, STRICT, VANILLA = "threshold", "threshold, 0.99", "one token a forward"
INNER = {
    THRESHOLD: {"inner": "threshold", "threshold": 0.9},
    STRICT: {"inner": "threshold", "threshold": 0.99},
    VANILLA: {"inner": "vanilla"},
}
ARMS: dict[str, dict[str, object]] = {
    "no drafts": {},
    "repetitions in the text": {"drafter": "lookup"},
    "previous proposals": {"drafter": "previous"},
    "two-grams of its own outputs": {"drafter": "two-gram"},
    "a model": {"drafter": "small"},
    "lossless, 1 ahead": {"drafter": "previous", "lossless": True},
    "lossless, 2 ahead": {"drafter": "previous", "lossless": True, "depth": 2},
    "lossless, 4 ahead": {"drafter": "previous", "lossless": True, "depth": 4},
}
COLUMNS = (
    "drafts",
    "right, %",
    "same answers, %",
    "forwards (of these the drafter's)",
    "tokens/forward",
    "queries/token",
)


@dataclass
class TwoGrams:
    """Drafts the token that most often followed the last two in the model's own outputs."""

    counts: dict[tuple[int, int], Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )

    def learn(self, outs: Sequence[Output]) -> None:
        """Count the tokens of answers."""
        for out in outs:
            ids = out.canvas_ids[max(0, out.prompt_length - 2) :]
            for first, second, third in zip(ids, ids[1:], ids[2:], strict=False):
                self.counts[first, second][third] += 1

    def __call__(self, canvas: Canvas) -> Draft:
        """Return the draft of every open position whose two predecessors are decided or drafted."""
        tokens = np.full(len(canvas), -1, dtype=np.int64)
        known = np.where(canvas.open, -1, canvas.tokens)
        for position in np.flatnonzero(canvas.open):
            if position < 2 or min(known[position - 2 : position]) < 0:
                continue
            seen = self.counts.get((int(known[position - 2]), int(known[position - 1])))
            if seen:
                tokens[position] = known[position] = seen.most_common(1)[0][0]
        return Draft(tokens)


def decode(
    llm: unmask.LLM, examples: Sequence[Example], inner: str, arm: dict[str, object]
) -> list[Output]:
    """Answer prompts with the decoder `inner`, wrapped unless `arm` is empty."""
    knobs = dict(INNER[inner])
    name = "speculative" if arm else str(knobs.pop("inner"))
    prompts = [example.prompt for example in examples]
    return llm.generate(
        prompts,
        name,
        gen_length=GEN_LENGTH,
        max_batch_size=BATCH,
        return_trace=True,
        **knobs,
        **arm,
    )


def row(
    label: str, outs: Sequence[Output], plain: Sequence[Output], examples: Sequence[Example]
) -> str:
    """Return a row of the table."""
    tokens = sum(len(out.token_ids) for out in outs)
    forwards, drafts = (
        sum(getattr(out, name) for out in outs) for name in ("num_forwards", "num_draft_forwards")
    )
    right = sum(check(example, out.text) for example, out in zip(examples, outs, strict=True))
    same = sum(a.token_ids == b.token_ids for a, b in zip(outs, plain, strict=True))
    cells = [
        label,
        f"{100 * right / len(outs):.0f}",
        f"{100 * same / len(outs):.0f}",
        f"{forwards / len(outs):.1f}" + (f" ({drafts / len(outs):.1f})" if drafts else ""),
        f"{tokens / forwards:.2f}",
        f"{sum(out.num_queries for out in outs) / tokens:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--test", type=int, default=24, help="prompts of each task")
    parser.add_argument("--small", help="folder of a smaller model")
    options = parser.parse_args()
    llm = unmask.LLM("demo", dtype="float32", device="cpu")
    llm.requests.drafters["small"] = draft_by(unmask.LLM(options.small) if options.small else llm)
    for task in ("word_problem", "sudoku"):
        examples = held_out_set(task, options.test)
        two_grams = TwoGrams()
        rng = random.Random(0)
        own = [training_example(task, rng) for _ in range(OWN_OUTPUTS)]
        two_grams.learn(decode(llm, own, THRESHOLD, {}))
        llm.requests.drafters["two-gram"] = two_grams
        for inner in INNER:
            plain = decode(llm, examples, inner, {})
            print(f"\n{task}, {inner}, {options.test} prompts:\n")
            print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}")
            for label, arm in ARMS.items():
                outs = decode(llm, examples, inner, arm) if arm else plain
                print(row(label, outs, plain, examples), flush=True)


if __name__ == "__main__":
    main()
