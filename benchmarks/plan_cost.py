"""Processor time of planning one HTTP request with many prompts and choices.

    python benchmarks/plan_cost.py [--prompts 64] [--choices 16]

Plans a body of `/v1/completions` without decoding anything: the method, a canvas per prompt, a request per
answer. Prints the least of five plans in milliseconds; the exit status is 1 above 50.
"""

from __future__ import annotations

import argparse
import time

from unmask import LLM
from unmask.server.protocol import CompletionRequest
from unmask.server.request_planner import Planner
from unmask.server.settings import ServerSettings

GOAL_MS = 50


def plan_ms(llm: LLM, num_prompts: int, choices: int, repeat: int = 5) -> float:
    """Return the least milliseconds of processor time of some plans."""
    planner, best = Planner(llm, ServerSettings(models=("demo",))), float("inf")
    for _ in range(repeat):
        prompts = [f"Tom has {i} boxes with 4 pens each." for i in range(num_prompts)]
        body = CompletionRequest(prompt=prompts, n=choices, max_tokens=64)
        began = time.process_time()
        plans = planner.completion(body, {"decoder": "threshold", "cache": "dual"})
        best = min(best, time.process_time() - began)
        assert len(plans) == num_prompts * choices, "one plan per answer"
    return 1000 * best


def main() -> int:
    """Print the time; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--choices", type=int, default=16)
    wanted = parser.parse_args()
    found = plan_ms(LLM("demo", dtype="float32", device="cpu"), wanted.prompts, wanted.choices)
    print(
        f"{wanted.prompts} prompts x n={wanted.choices}: {found:.1f} ms (goal: at most {GOAL_MS})"
    )
    return int(found > GOAL_MS)


if __name__ == "__main__":
    raise SystemExit(main())
