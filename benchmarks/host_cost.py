"""Time on the host per sequence and step, for every decoder and cache.

    python benchmarks/host_cost.py [--decoder threshold ...] [--cache dual ...] [--batch 64] [--profile]
    python benchmarks/host_cost.py --growth

A step of the scheduler without the network and the LM head with its sampling: asking, planning, cutting up
the reading, deciding, editing and recording. The network is random and tiny. Times are the process's on the
CPU, so that other load counts little, and the least of `--repeat` stretches of steps.

`--growth` fits the exponent of a step's host time in the number of positions (256 to 4,096 with four
sequences) and of sequences (8 to 64 with 64 positions), by least squares on logarithms, and exits with
status 1 if one exceeds 1.15.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from unmask import LLM, caches, decoders
from unmask.decoders.registry import decoder_class
from unmask.engine.model_runner import ModelRunner
from unmask.engine.scheduler import Scheduler
from unmask.engine.sequence import SequenceState
from unmask.models.spec import ModelSpec
from unmask.models.transformer import Transformer

GOALS_MS = {"threshold": 0.08, "klass": 0.2, "cadllm": 0.2}
MAX_EXPONENT = 1.15
POSITIONS, BATCHES = (256, 1024, 4096), (8, 24, 64)
BLOCK_OF = {"block_causal": 32}
"""The size of a model's blocks for a cache policy that needs them."""
WARM_UP = 2
"""Steps before the clock starts: the first one computes whole canvases."""


@cache
def network(block_size: int | None = None) -> LLM:
    """Return a random network of one narrow layer with a context of 8,192 positions."""
    torch.manual_seed(0)
    spec = ModelSpec(
        family="llada",
        vocab_size=64,
        d_model=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        d_ff=8,
        rope_theta=10000.0,
        norm_eps=1e-5,
        max_length=8192,
        mask_id=60,
        eos_id=59,
        pad_id=59,
        block_size=block_size,
    )
    return LLM(Transformer(spec).requires_grad_(False))


@dataclass
class Stopwatch:
    """The processor time that the wrapped calls took."""

    seconds: float = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.process_time() - began

        return timed


class Batch:
    """Sequences of one method that decode together, and the clock of the network."""

    def __init__(self, llm: LLM, decoder: str, cache: str, batch: int, positions: int) -> None:
        size: dict[str, Any] = {decoder_class(decoder).length_knob: positions}
        requests = [
            llm.request([1 + i % 50] * 16, decoder, cache, stop_at_eos=False, **size)
            for i in range(batch)
        ]
        runner = ModelRunner(
            llm.model,
            llm.vocabulary,
            batch,
            max(request.max_positions for request in requests),
            store=requests[0].cache.stores,
            features=requests[0].cache.layered,
        )
        self.clock = Stopwatch()
        runner._states = self.clock.wrap(runner._states)  # type: ignore[method-assign]
        runner.lm_head.propose = self.clock.wrap(runner.lm_head.propose)  # type: ignore[method-assign]
        self.scheduler = Scheduler(runner)
        for i, request in enumerate(requests):
            self.scheduler.admit(SequenceState.begin(request, i))

    def stretch(self, steps: int) -> float:
        """Run some steps; return the milliseconds of host work per sequence and step."""
        self.clock.seconds, count, began = 0.0, 0, time.process_time()
        for _ in range(steps):
            count += len(self.scheduler.step())
        return 1000 * (time.process_time() - began - self.clock.seconds) / max(1, count)


def cost(method: tuple[str, str], batch: int, positions: int, repeat: int = 3) -> float:
    """Return the least milliseconds of host work per sequence and step over some stretches."""
    sequences = Batch(network(BLOCK_OF.get(method[1])), *method, batch, positions)
    sequences.stretch(WARM_UP)
    return min(sequences.stretch(2) for _ in range(repeat))


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Fit values ~ sizes ** exponent by least squares on logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    pairs = zip(x, y, strict=True)
    return sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a in x)


def growth(method: tuple[str, str], *, is_long: bool) -> float:
    """Return the exponent of a step's host time in positions, or in sequences; print the row."""
    sizes = POSITIONS if is_long else BATCHES
    each = [cost(method, 4, n) if is_long else n * cost(method, n, 64) for n in sizes]
    found = exponent(sizes, each)
    cells = " | ".join(f"{value:.3f}" for value in each)
    print(f"| {' | '.join(method)} | {sizes} | {cells} | {found:.2f} |", flush=True)
    return found


def profile(method: tuple[str, str], batch: int) -> None:
    """Print the functions that take the most time of a step."""
    sequences = Batch(network(BLOCK_OF.get(method[1])), *method, batch, 64)
    sequences.stretch(WARM_UP)
    watch = cProfile.Profile(time.process_time)
    watch.runcall(sequences.stretch, 4)
    pstats.Stats(watch).sort_stats("tottime").print_stats(45)


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", nargs="*", default=[n for n in decoders.names() if n != "ar"])
    parser.add_argument(
        "--cache", nargs="*", help="default: dual; with --growth: threshold with all"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="fit exponents instead")
    parser.add_argument("--profile", action="store_true", help="profile the first method instead")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    status = 0
    chosen = wanted.cache or ["dual"]
    methods = [(decoder, each) for decoder in wanted.decoder for each in chosen]
    if wanted.growth and not wanted.cache:
        methods += [("threshold", each) for each in caches.names() if each not in ("auto", "dual")]
    if wanted.profile:
        profile(methods[0], wanted.batch)
        return 0
    if wanted.growth:
        print("| decoder | cache | sizes | ms a step | exponent |\n|---|---|---|---|---|")
        for method in methods:
            for is_long in (True, False):
                status |= growth(method, is_long=is_long) > MAX_EXPONENT
        return int(status)
    print("| decoder | cache | ms per sequence and step | goal |\n|---|---|---|---|")
    for method in methods:
        found, goal = cost(method, wanted.batch, 64, wanted.repeat), GOALS_MS.get(method[0])
        print(f"| {' | '.join(method)} | {found:.3f} | {goal or ''} |", flush=True)
        status |= goal is not None and found > goal
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
