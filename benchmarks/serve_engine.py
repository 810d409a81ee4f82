"""Speedup of an engine by concurrent requests over sequential ones, and its profile.

    python benchmarks/serve_engine.py [--requests 16] [--cache dual] [--decoder threshold] [--repeat 5]

The same requests are decoded twice by the same engine: each submitted when the one before has ended, and
all at once. In float32 the answers must be equal, token for token. Prints one line a setting (median and
spread of `--repeat` passes, after one to warm up), and with `--profile` the functions that took the most
time of a batched pass.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import threading
import time

import torch

import unmask
from unmask.engine.config import EngineConfig
from unmask.engine.engine import Engine, RequestUpdate
from unmask.engine.model_runner import ModelRunner
from unmask.engine.outputs import Output
from unmask.engine.request import Request
from unmask.engine.scheduler import decode
from unmask.engine.sequence import SequenceState
from unmask.engine.threads import run_in_thread

PROMPT = "Tom has {} boxes with {} pens each. He buys 5 more pens. How many pens does he have?"


class Answer:
    """Future of the end of a request."""

    def __init__(self) -> None:
        self.done, self.output = threading.Event(), None

    def __call__(self, update: RequestUpdate) -> None:
        """Receive the updates of a request."""
        if update.kind == "step":
            return
        if update.error is not None:
            print(f"{update.error}", file=sys.stderr)
        self.output = update.output
        self.done.set()


def serial(engine: Engine, requests: list[Request]) -> list[Output]:
    """Decode the requests one after the other."""
    outputs = []
    for request in requests:
        answer = Answer()
        engine.submit(request, answer)
        answer.done.wait()
        outputs.append(answer.output)
    return outputs


def together(engine: Engine, requests: list[Request]) -> list[Output]:
    """Decode all requests at once."""
    answers = [Answer() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        engine.submit(request, answer)
    for answer in answers:
        answer.done.wait()
    return [answer.output for answer in answers]


def timed(call, engine: Engine, requests: list[Request]) -> tuple[float, list[Output]]:
    """Return seconds and outputs."""
    began = time.perf_counter()
    outputs = call(engine, requests)
    return time.perf_counter() - began, outputs


def profile(llm: unmask.LLM, requests: list[Request]) -> None:
    """Profile a batched pass in this thread, where the profiler sees it."""
    runner = ModelRunner(llm.model, llm.vocabulary, len(requests))
    sequences = [SequenceState.begin(request, i) for i, request in enumerate(requests)]
    profiler = cProfile.Profile()
    profiler.runcall(lambda: list(decode(sequences, runner)))
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure every requested combination."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--decoder", action="append")
    parser.add_argument("--cache", action="append")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    wanted = parser.parse_args()
    llm = run_in_thread(
        lambda: unmask.LLM(wanted.model, dtype=wanted.dtype)
    )  # as `unmask serve` does
    print(f"{torch.__version__=} {torch.get_num_threads()=} {wanted}")
    prompts = [PROMPT.format(i % 8 + 2, i // 8 + 3) for i in range(wanted.requests)]
    for decoder in wanted.decoder or ["vanilla", "threshold"]:
        for cache in wanted.cache or ["none", "dual"]:
            requests = [
                llm.request(prompt, decoder, cache, gen_length=wanted.gen_length)
                for prompt in prompts
            ]
            if wanted.profile:
                profile(llm, requests)
                continue
            with Engine(llm, EngineConfig(max_num_seqs=wanted.requests)) as engine:
                timed(together, engine, requests)
                passes = [
                    (timed(serial, engine, requests), timed(together, engine, requests))
                    for _ in range(wanted.repeat)
                ]
                stats = engine.stats
            for (_, one), (_, all_) in passes if wanted.dtype == "float32" else ():
                assert [o.token_ids for o in one] == [o.token_ids for o in all_], "answers differ"
            tokens = sum(len(o.token_ids) for o in passes[0][0][1])
            slow = [first[0] for first, _ in passes]
            fast = [second[0] for _, second in passes]
            ratios = [a / b for a, b in zip(slow, fast, strict=True)]
            print(
                f"{decoder:10} {cache:13} {tokens} tokens: alone {tokens / statistics.median(slow):7.1f} "
                f"together {tokens / statistics.median(fast):7.1f} tokens/s, "
                f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); "
                f"EOS waste {stats.num_wasted / stats.num_queries:.0%} of computed positions"
            )


if __name__ == "__main__":
    main()
