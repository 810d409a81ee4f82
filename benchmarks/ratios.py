"""Ratios of speed on the bundled model: the table in README.md and docs/reference/performance.md.

    python benchmarks/ratios.py [--prompts 16] [--rounds 3] [--write]

Each line compares two settings that answer the same held-out word problems in turns (A B, B A, ...) in this
process, on one thread. The ratio is the median of the rounds, of tokens per second of processor time,
which other work on the machine changes little, with the smallest and the largest beside it. `--write`
replaces the tables in the two files. Ten minutes of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import unmask
from unmask.bench.environment import machine
from unmask.demo.tasks import Example, check, held_out_set
from unmask.engine.outputs import Output

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/reference/performance.md")
BEGIN, END = "<!-- ratios: benchmarks/ratios.py --write -->", "<!-- end of ratios -->"
COLUMNS = ("setting", "instead of", "tokens/s", "smallest to largest", "right, %")


@dataclass(frozen=True)
class Setting:
    """A way to answer the prompts."""

    decoder: str = "vanilla"
    cache: str = "none"
    batch: int = 1
    gen_length: int = 64
    dtype: str = "float32"
    drop_after_eos: bool = False


BASE = Setting()
THRESHOLD = Setting(decoder="threshold")
LONG = Setting(gen_length=128)
LINES: tuple[tuple[str, Setting, str, Setting], ...] = (
    ("decoder `threshold`", THRESHOLD, "`vanilla`", BASE),
    ("decoder `klass`", Setting(decoder="klass"), "`vanilla`", BASE),
    ("decoder `cadllm`", Setting(decoder="cadllm"), "`vanilla`", BASE),
    ("cache `prefix`, 128 positions", replace(LONG, cache="prefix"), "`none`", LONG),
    ("cache `dual`, 128 positions", replace(LONG, cache="dual"), "`none`", LONG),
    (
        "`drop_after_eos`, 128 positions",
        replace(LONG, drop_after_eos=True),
        "without it",
        LONG,
    ),
    (
        "`threshold`, `dual` and `drop_after_eos`, 128 positions",
        replace(LONG, decoder="threshold", cache="dual", drop_after_eos=True),
        "`vanilla`, `none`",
        LONG,
    ),
    ("16 prompts in a batch", replace(THRESHOLD, batch=16), "one after another", THRESHOLD),
    ("bfloat16", replace(THRESHOLD, dtype="bfloat16"), "float32", THRESHOLD),
    (
        "bfloat16, 16 in a batch",
        replace(THRESHOLD, dtype="bfloat16", batch=16),
        "float32",
        replace(THRESHOLD, batch=16),
    ),
)


class Bench:
    """Loaded models, and the prompts that every setting answers."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._models: dict[str, unmask.LLM] = {}

    def model(self, setting: Setting) -> unmask.LLM:
        """Return the model in the type of a setting, loaded once."""
        if setting.dtype not in self._models:
            self._models[setting.dtype] = unmask.LLM("demo", dtype=setting.dtype, device="cpu")
        return self._models[setting.dtype]

    def answer(self, setting: Setting) -> tuple[list[Output], float]:
        """Return the answers to all prompts, and tokens per second."""
        llm, prompts = self.model(setting), [example.prompt for example in self.examples]
        begin = time.process_time()
        outs = llm.generate(
            prompts,
            setting.decoder,
            setting.cache,
            gen_length=setting.gen_length,
            max_batch_size=setting.batch,
            drop_after_eos=setting.drop_after_eos,
        )
        return outs, sum(len(out.token_ids) for out in outs) / (time.process_time() - begin)

    def right(self, outs: Sequence[Output]) -> float:
        """Return the percentage of right answers."""
        pairs = zip(self.examples, outs, strict=True)
        return 100 * sum(check(example, out.text) for example, out in pairs) / len(outs)

    def line(self, name: str, own: Setting, other_name: str, other: Setting, rounds: int) -> str:
        """Return a row of the table."""
        outs = {setting: self.answer(setting)[0] for setting in (own, other)}  # a warm-up, too
        ratios = []
        for turn in range(rounds):
            order = (own, other) if turn % 2 else (other, own)
            speed = {setting: self.answer(setting)[1] for setting in order}
            ratios.append(speed[own] / speed[other])
        cells = (
            name,
            other_name,
            f"{statistics.median(ratios):.2f} times",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{self.right(outs[own]):.0f} and {self.right(outs[other]):.0f}",
        )
        return "| " + " | ".join(cells) + " |"


def write(page: Path, table: str) -> None:
    """Replace the table of a page. Raises SystemExit for a page without the marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"error: {page} has no lines {BEGIN!r} and {END!r} around the table")
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16, help="held-out word problems")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--write", action="store_true", help="replace the tables of the two pages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(held_out_set("word_problem", options.prompts))
    rows = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---|---|"]
    for row in rows:
        print(row, flush=True)
    for line in LINES:
        rows.append(bench.line(*line, rounds=options.rounds))
        print(rows[-1], flush=True)
    note = (
        f"{options.prompts} word problems, greedy, medians of {options.rounds} runs in turns; "
        f"{machine('cpu')['processor']}, 1 thread, torch {torch.__version__}."
    )
    table = "\n".join([*rows, "", note])
    print(f"\n{note}")
    if options.write:
        for page in PAGES:
            write(page, table)


if __name__ == "__main__":
    main()
