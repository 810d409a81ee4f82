"""Fine-tune the bundled model on 200 rows of a task it cannot do, fully and by LoRA, and measure both.

    python examples/fine_tune.py [--folder runs/fine-tune] [--steps 300]

Prints accuracy on held-out rows before and after, and on the tasks that the model could do already
(forgetting). An interrupted run goes on. benchmarks/fine_tune_jobs.py has more of it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import unmask
from unmask.demo.tasks import check, held_out_set

UNITS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("kg", "g", 1000),
    ("cm", "mm", 10),
    ("l", "ml", 1000),
)


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Return rows of the new task: a quantity, to be written in a smaller unit."""
    rng = random.Random(seed)
    chosen: dict[str, dict[str, str]] = {}
    while len(chosen) < count:
        unit, smaller, factor = rng.choice(UNITS)
        number = rng.randint(2, 99)
        prompt = f"Convert {number} {unit} to {smaller}."
        chosen[prompt] = {"prompt": prompt, "response": f"{number * factor} {smaller}"}
    return list(chosen.values())


def accuracy(model: str | Path, test: list[dict[str, str]], old_tasks: int) -> dict[str, str]:
    """Return the shares of right answers as texts, by task."""
    llm = unmask.LLM(model)
    result: dict[str, str] = {}
    outputs = llm.generate(
        [row["prompt"] for row in test], "threshold", gen_length=16, block_length=16
    )
    right = sum(out.text.strip() == row["response"] for out, row in zip(outputs, test, strict=True))
    result["convert"] = f"{right}/{len(test)}"
    for task in ("word_problem", "sudoku"):
        examples = held_out_set(task, old_tasks)
        prompts = [each.prompt for each in examples]
        outputs = llm.generate(prompts, "threshold", gen_length=64, block_length=64)
        right = sum(check(each, out.text) for each, out in zip(examples, outputs, strict=True))
        result[task] = f"{right}/{len(examples)}"
    return result


def main() -> None:
    """Make the rows, train twice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tune"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--test", type=int, default=50, help="held-out rows of each task")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    every = rows(200 + options.test, seed=0)
    data = options.folder / "convert.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in every[:200]))
    test = every[200:]
    print("| model | seconds | convert | word problems | Sudoku |\n|---|---:|---:|---:|---:|")

    def line(name: str, model: str | Path, seconds: str) -> None:
        found = accuracy(model, test, options.test)
        print(f"| {name} | {seconds} | {' | '.join(found.values())} |", flush=True)

    line("before", "demo", "")
    for name, settings in (
        ("full", {"optim.lr": 3e-4}),
        ("LoRA", {"lora.rank": 16, "optim.lr": 2e-3}),
    ):
        began = time.perf_counter()
        done = unmask.train(
            data, output=options.folder / name, steps=options.steps, batch_size=16,
            micro_batch_size=16, **settings,
        )  # fmt: skip
        line(name, done.folder, f"{time.perf_counter() - began:.0f}")


if __name__ == "__main__":
    main()
