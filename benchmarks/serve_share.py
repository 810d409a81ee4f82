"""What a server loses to `LLM.generate`, and the time to its first text, on one core.

    python benchmarks/serve_share.py [--requests 64] [--concurrency 16] [--length 64] [--repeat 5]

The same prompts are decoded by `LLM.generate` in batches of `--concurrency`, and by `unmask serve` for as
many clients that stream, in turns. Server and library run on one core each time, the clients on another.
Prints the tokens per second of both, their ratio, and the mean time to the first text as a share of the
mean time of an answer: that can be no less than the share of the forwards after which the first position of
an answer is decided, and a decoder decides it when it is sure of it. The exit status is 1 on a missed goal.
Linux only, since it binds processes to cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from memory_soak import server

from unmask import LLM

LEAST_SHARE, MOST_FIRST = 0.92, 0.5
"""Goals: the server's share of the library's throughput, and first text by the time of an answer."""
LATENESS = 0.1
"""How much later than the first position is decided its text may come."""
PROMPT = "Tom has {} boxes with {} pens each. He buys {} more pens. How many pens does he have?"
BY_LIBRARY = """
import json, sys, time
from unmask import LLM
prompts, size, options = json.load(sys.stdin)
llm = LLM("demo")
llm.generate(prompts[:size], "threshold", "dual", max_batch_size=size, **options)
began = time.perf_counter()
outputs = llm.generate(prompts, "threshold", "dual", max_batch_size=size, **options)
took = time.perf_counter() - began
traced = llm.generate(prompts[:size], "threshold", "dual", return_trace=True, **options)
until_first = [
    1 + min(k for k, step in enumerate(output.trace) for commit in step.committed
            if commit.position == output.prompt_length)
    for output in traced
]
bound = sum(until_first) / sum(output.num_forwards for output in traced)
print(json.dumps([took, sum(len(output.token_ids) for output in outputs), bound]))
"""


def on_core(core: int) -> dict[str, object]:
    """Return options of `subprocess` that bind a program to a core, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {"env": environment, "preexec_fn": lambda: os.sched_setaffinity(0, {core})}


def by_library(prompts: list[list[int]], size: int, length: int) -> tuple[float, int, float]:
    """Return the seconds that `LLM.generate` takes for all prompts, the number of tokens, and a bound.

    The bound is the share of an answer's forwards that have run when its first position is decided.
    """
    done = subprocess.run(
        [sys.executable, "-c", BY_LIBRARY],
        input=json.dumps([prompts, size, {"gen_length": length}]),
        capture_output=True,
        text=True,
        check=True,
        **on_core(0),
    )
    seconds, num_tokens, bound = json.loads(done.stdout)
    return seconds, num_tokens, bound


def ask(url: str, prompt: list[int], length: int) -> tuple[float, float, int]:
    """Stream one answer; return seconds to its first text, to its end, and the number of its tokens."""
    body = {"prompt": prompt, "max_tokens": length, "stream": True}
    body["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began, first, count = time.perf_counter(), None, 0
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and any(choice["text"] for choice in event["choices"]):
                first = time.perf_counter() - began
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
    took = time.perf_counter() - began
    return took if first is None else first, took, count


def by_server(
    url: str, prompts: list[list[int]], size: int, length: int
) -> tuple[float, list[tuple[float, float, int]]]:
    """Return the seconds that `size` clients take for all prompts, and the times of each answer."""
    with ThreadPoolExecutor(size) as pool:
        began = time.perf_counter()
        each = list(pool.map(lambda prompt: ask(url, prompt, length), prompts))
        return time.perf_counter() - began, each


def main() -> int:
    """Measure in turns and print a line for each quantity; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    wanted = parser.parse_args()
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    llm = LLM("demo")
    texts = [PROMPT.format(2 + i % 7, 3 + i % 5, 1 + i % 9) for i in range(wanted.requests)]
    canvases = [llm.request(text, gen_length=wanted.length).canvas for text in texts]
    prompts = [canvas.tokens[: canvas.prompt_length].tolist() for canvas in canvases]
    shares, firsts = [], []
    flags = ("--decoder", "threshold", "--cache", "dual", "--max-num-seqs", str(wanted.concurrency))
    with server("demo", *flags, **on_core(0)) as (_, url):
        by_server(url, prompts, wanted.concurrency, wanted.length)
        for _ in range(wanted.repeat):
            library_s, num_tokens, bound = by_library(prompts, wanted.concurrency, wanted.length)
            server_s, each = by_server(url, prompts, wanted.concurrency, wanted.length)
            shares.append(library_s / server_s)
            firsts.append(sum(first for first, _, _ in each) / sum(took for _, took, _ in each))
            num_served = sum(count for _, _, count in each)
            print(
                f"{num_tokens} tokens in {library_s:.2f} s by generate, {num_served} in {server_s:.2f} s "
                f"by the server; first text at {firsts[-1]:.2f} of an answer",
                flush=True,
            )
    share, first = statistics.median(shares), statistics.median(firsts)
    print(f"throughput of the server by that of generate: {share:.2f} (goal: {LEAST_SHARE})")
    most_first = max(MOST_FIRST, bound + LATENESS)
    print(
        f"time to first text by the time of an answer: {first:.2f} (goal: {MOST_FIRST}, or {LATENESS} "
        f"above {bound:.2f}: the share of the forwards that have run when the first position is decided)"
    )
    return int(share < LEAST_SHARE or first > most_first)


if __name__ == "__main__":
    raise SystemExit(main())
