"""Speedup of a server by concurrent requests over sequential ones, over HTTP.

    python benchmarks/serve_http.py [--requests 48] [--concurrency 16] [--decoder threshold] [--repeat 3]

Starts `unmask serve` on a free port, a server a setting, and lets `unmask bench serve` ask it, in turns,
with one request under way and with many: the same prompts and lengths. Prints a row a setting (median and
range over the repeats): output tokens a second of both, their ratio, and the mean time to the first text
of many against the mean latency of one alone. In float32 the answers must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

READY = re.compile(r"http://127\.0\.0\.1:\d+")
UNMASK = str(Path(sys.executable).with_name("unmask"))


def start(wanted: argparse.Namespace, decoder: str, cache: str) -> tuple[subprocess.Popen, str]:
    """Start a server; return it with its address."""
    command = [UNMASK, "serve", wanted.model, "--port", "0", "--dtype", wanted.dtype]
    command += ["--decoder", decoder, "--cache", cache, "--max-num-seqs", str(wanted.concurrency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None, "a pipe"
    for line in server.stdout:
        found = READY.search(line)
        if found:
            return server, found[0]
    raise SystemExit(f"the server did not start; exit status {server.wait()}")


def ask(url: str, wanted: argparse.Namespace, concurrency: int) -> dict:
    """Run the client once; return all its numbers and texts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [UNMASK, "bench", "serve", "--base-url", url, "--backend", wanted.backend]
        command += ["--dataset-name", wanted.dataset, "--num-prompts", str(wanted.requests)]
        command += ["--max-concurrency", str(concurrency)]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        if wanted.output_len:
            command += ["--random-output-len", str(wanted.output_len)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))


def spread(values: list[float], digits: int) -> str:
    """Format median and range."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row(url: str, wanted: argparse.Namespace, decoder: str, cache: str) -> str:
    """Measure one setting."""
    ask(url, wanted, wanted.concurrency)  # the first forwards of a shape are slower
    one, all_, times, first = [], [], [], []
    for _ in range(wanted.repeat):
        alone, together = ask(url, wanted, 1), ask(url, wanted, wanted.concurrency)
        is_same = alone["generated_texts"] == together["generated_texts"]
        if wanted.dtype == "float32" and not is_same:
            raise SystemExit(f"{decoder}, {cache}: the answers differ")
        one.append(alone["output_throughput"])
        all_.append(together["output_throughput"])
        times.append(all_[-1] / one[-1])
        first.append(together["mean_ttft_ms"] / alone["mean_e2e_latency_ms"])
    cells = [decoder, cache, spread(one, 0), spread(all_, 0), spread(times, 2), spread(first, 2)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every requested combination."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--backend", default="openai-chat")
    parser.add_argument("--dataset", default="word_problem")
    parser.add_argument("--output-len", type=int)
    parser.add_argument("--decoder", action="append")
    parser.add_argument("--cache", action="append")
    parser.add_argument("--repeat", type=int, default=3)
    wanted = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {wanted}\n")
    heads = ["decoder", "cache", "one at a time, tokens/s", "together, tokens/s", "times"]
    heads.append("mean TTFT together / mean latency alone")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for decoder in wanted.decoder or ["vanilla", "threshold"]:
        for cache in wanted.cache or ["dual"]:
            server, url = start(wanted, decoder, cache)
            try:
                print(row(url, wanted, decoder, cache), flush=True)
            finally:
                server.terminate()
                server.wait()


if __name__ == "__main__":
    main()
