"""Time of a request whose length is new, by that of the same request again.

    python benchmarks/new_lengths.py [--lengths 40] [--repeat 4]

Decodes 50 random prompts of up to 160 tokens with the bundled model, as the first requests of a server do,
and then prompts of lengths that were not among them, each a few times: the first time by the least of the
others. Packed products are compiled for a few numbers of rows (`models/packed_weights.py`), so a new length
should find its kernels. Prints the median of the ratios for each cache; the exit status is 1 above the
goal. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from unmask import LLM

GOAL = 1.1
WARM_UP, LONGEST = 50, 160


def seconds(llm: LLM, prompt: list[int], cache: str) -> float:
    """Return the processor time of an answer of 16 positions."""
    began = time.process_time()
    llm.generate([prompt], "threshold", cache, gen_length=16, stop_at_eos=False)
    return time.process_time() - began


def main() -> int:
    """Measure every cache; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=4)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    llm, draw, status = LLM("demo"), random.Random(0), 0
    for cache in ("none", "dual", "prefix"):
        lengths = [draw.randrange(1, LONGEST + 1) for _ in range(WARM_UP)]
        for length in lengths:
            seconds(llm, [draw.randrange(4, 2000) for _ in range(length)], cache)
        others = [n for n in range(1, 2 * LONGEST) if n not in set(lengths)]
        ratios = []
        for length in draw.sample(others, wanted.lengths):
            prompt = [draw.randrange(4, 2000) for _ in range(length)]
            first, *again = (seconds(llm, prompt, cache) for _ in range(wanted.repeat))
            ratios.append(first / min(again))
        found = statistics.median(ratios)
        print(f"{cache}: {found:.3f} (largest {max(ratios):.2f}; goal: at most {GOAL})", flush=True)
        status |= found > GOAL
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
