"""Countdown: 300 examples, then reinforcement learning from there, with a table before and after.

    python benchmarks/train_countdown.py [--folder runs/countdown] [--test 30]

Three minutes of one core. Seed 0; an interrupted run goes on. Intervals are Wilson's, of 95 percent.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import unmask
from unmask.bench.environment import machine
from unmask.demo.tasks import check, held_out_set, training_example
from unmask.train.api import train
from unmask.tune.goal import wilson

Row = dict[str, str]


def share(right: int, count: int) -> str:
    """Return a share in percent with Wilson's interval."""
    low, high = wilson(right, count, z=1.96)
    return f"{100 * right / count:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def old_task(llm: unmask.LLM, task: str, count: int) -> str:
    """Return the accuracy in held-out examples of a task of the bundled model."""
    examples = held_out_set(task, count)
    outputs = llm.generate(
        [e.prompt for e in examples], "threshold", gen_length=64, block_length=64
    )
    return share(
        sum(check(e, o.text) for e, o in zip(examples, outputs, strict=True)), len(examples)
    )


def countdown(folder: Path, count: int) -> list[str]:
    """Train 300 examples of Countdown, then by rewards, and measure held-out puzzles."""
    rng = random.Random(0)
    examples = [training_example("countdown", rng) for _ in range(300)]
    rows = [{"prompt": e.prompt, "response": e.answer} for e in examples]
    data = write_rows(folder / "countdown.jsonl", rows)
    header = "| model | seconds | Countdown | word problems | mean reward, first and last 3 steps |"
    lines = [header, "|---|---:|---|---|---|"]

    def line(name: str, model: str | Path, seconds: str, reward: str = "") -> None:
        llm = unmask.LLM(model)
        found = [old_task(llm, task, count) for task in ("countdown", "word_problem")]
        lines.append(f"| {name} | {seconds} | {' | '.join(found)} | {reward} |")

    line("before", "demo", "")
    began = time.perf_counter()
    tuned = train(
        data,
        output=folder / "sft",
        steps=60,
        batch_size=32,
        micro_batch_size=32,
        **{"optim.lr": 5e-4},
    )
    line("fine-tuned, 60 steps", tuned.folder, f"{time.perf_counter() - began:.0f}")
    from unmask.evals.rewards import countdown as reward

    rewards: list[float] = []
    began = time.perf_counter()
    done = train(
        data,
        output=folder / "rl",
        init=tuned.folder,
        objective="diffu_grpo",
        reward=reward,
        report=lambda entry: rewards.append(entry.scores["reward"]),
        steps=8,
        batch_size=4,
        micro_batch_size=12,
        optim={"lr": 3e-5, "clip": 0.2},
        rl={"group": 6, "inner": 2, "gen_length": 32, "decoder": "threshold", "block_length": 32},
    )
    ends = [sum(part) / max(1, len(part)) for part in (rewards[:3], rewards[-3:])]
    seconds = f"{time.perf_counter() - began:.0f}"
    line("and by rewards, 8 steps", done.folder, seconds, f"{ends[0]:.2f}, {ends[1]:.2f}")
    return lines


def main() -> None:
    """Train and measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/countdown"))
    parser.add_argument("--test", type=int, default=30, help="held-out examples of each task")
    options = parser.parse_args()
    where = machine("cpu")
    print("\n".join(countdown(options.folder, options.test)))
    print(f"\n{where['processor']}, {where['num_threads']} thread(s), torch {where['torch']}")


if __name__ == "__main__":
    main()
