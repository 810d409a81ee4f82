"""Seconds, on a machine with nothing else to do: part `timing`.

Methods on the bundled model; the LM head and softmax by vocabulary size; pruned vocabularies inside decodes
of a model with LLaDA's 126,464 tokens and random weights. Every repeat is one pass over all of them, each
starting with another; a warm-up goes before. The file says what machine it was and how busy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from cells import HERE, load
from parts import ABLATION, BASELINE, FEW, GEN, PAPER, THRESHOLD
from prompts import SETS, is_invalid

from unmask.bench.environment import machine
from unmask.bench.overhead import random_llm
from unmask.demo.tasks import check

PATH = HERE / "results" / "timing.json"
REPEATS = 5
BATCH = 32
VOCABULARIES = (1000, 4000, 16_000, 50_000, 126_464)
WIDTH, ROWS = 1024, 32
KEPT, WIDE = 70, 800
"""V_t in the middle of an answer and at its beginning, in CadLLM's defaults."""
LARGE = {
    "none": "threshold(threshold=0.9)",
    "static 100": "threshold(threshold=0.9, vocabulary=static, vocab_size=100)",
    "adaptive": "threshold(threshold=0.9, vocabulary=adaptive)",
    "union 1000": "threshold(threshold=0.9, vocabulary=union, vocab_size=1000)",
    "CadLLM": "cadllm",
    "CadLLM, no vocabulary": "cadllm(vocabulary=none)",
}


def ensure(say: Any) -> None:
    """Time the methods that are not stored yet."""
    found: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    jobs = {
        "word": lambda: methods("word"),
        "sudoku": lambda: methods("sudoku"),
        "head": heads,
        "large": large,
    }
    for label, job in jobs.items():
        if label not in found:
            say(f"timing {label}")
            found[label] = {"machine": machine("cpu"), "rows": job()}
            PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def arms(prompts: str) -> dict[str, tuple[str, str]]:
    """Return the timed methods: the baselines, and on word problems every arm of the ablation."""
    found = dict(BASELINE) | {
        "CadLLM, paper": (PAPER, "dual"),
        "threshold 0.9, no cache": (THRESHOLD, "none"),
    }
    if prompts == "word":
        found |= {f"ablation: {label}": (method, "dual") for label, method in ABLATION.items()}
    return found


def methods(prompts: str) -> dict[str, Any]:
    """Return seconds and results of decoding FEW prompts in batches of BATCH."""
    llm = load("demo", 1.0)
    examples = SETS[prompts](FEW)
    rows: dict[str, Any] = {}

    def decode(label: str, method: str, cache: str) -> Callable[[], None]:
        def run() -> None:
            outs = llm.generate(
                [e.prompt for e in examples], method, cache, gen_length=GEN, max_batch_size=BATCH
            )
            pairs = list(zip(examples, outs, strict=True))
            rows[label] = {
                "n": len(pairs),
                "right": sum(check(e, out.text) for e, out in pairs),
                "invalid": sum(is_invalid(e, out.text) for e, out in pairs),
                "tokens": sum(len(out.token_ids) for out in outs),
                "forwards": sum(out.num_forwards for out in outs),
            }

        return run

    jobs = {label: decode(label, *arm) for label, arm in arms(prompts).items()}
    for label, seconds in repeated(jobs).items():
        rows[label]["seconds"] = seconds
    return rows


def repeated(jobs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the seconds of REPEATS alternating runs of each job after a warm-up."""
    seconds: dict[str, list[float]] = {label: [] for label in jobs}
    labels = list(jobs)
    for job in jobs.values():
        job()
    for repeat in range(REPEATS):
        first = repeat % len(labels)
        for label in (*labels[first:], *labels[:first]):
            began = time.perf_counter()
            jobs[label]()
            seconds[label].append(round(time.perf_counter() - began, 5))
    return seconds


def heads() -> dict[str, Any]:
    """Time the parts of a reading of ROWS positions by vocabulary size, as in CadLLM's Fig. 1b."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for size in VOCABULARIES:
        weight = torch.randn(size, WIDTH, generator=generator)
        hidden = torch.randn(ROWS, WIDTH, generator=generator)
        logits = hidden @ weight.T
        jobs: dict[str, Callable[[], Any]] = {
            "LM head": lambda w=weight, h=hidden: h @ w.T,
            "softmax, float32": lambda x=logits: x.softmax(-1),
            "softmax, float64": lambda x=logits: x.double().softmax(-1),
            "argmax and log-sum": lambda x=logits: (x.max(-1), x.logsumexp(-1)),
            f"top {KEPT} and softmax": lambda x=logits: x.topk(KEPT, -1).values.softmax(-1),
            f"top {WIDE} and softmax": lambda x=logits: x.topk(WIDE, -1).values.softmax(-1),
        }
        with torch.inference_mode():
            found[str(size)] = repeated({k: _ten_times(job) for k, job in jobs.items()})
    return {size: {k: [s / 10 for s in v] for k, v in row.items()} for size, row in found.items()}


def _ten_times(job: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(10):
            job()

    return run


def large() -> dict[str, Any]:
    """Time forwards of decodes with a large vocabulary and random weights, 16 positions, no early stop."""
    llm = random_llm(126_464, 512, 2, torch.float32, head_width=64)
    prompts = [list(range(10 + row, 74 + row)) for row in range(4)]
    forwards: dict[str, float] = {}

    def decode(label: str, method: str) -> Callable[[], None]:
        def run() -> None:
            outs = llm.generate(prompts, method, "dual", gen_length=16, stop_at_eos=False)
            forwards[label] = max(out.num_forwards for out in outs)

        return run

    seconds = repeated({label: decode(label, method) for label, method in LARGE.items()})
    return {label: {"seconds": s, "forwards": forwards[label]} for label, s in seconds.items()}
