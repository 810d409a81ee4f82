"""Decisions of the bundled model: agreement of joint and independent questions, calibration, and speed.

    python benchmarks/decisions.py [--problems 100] [--asked 20]

Prints Markdown tables. The input is a held-out word problem; its questions are the lines of its worked
answer up to their results, and the final result, each with four options of as many digits (layout cloze).
Half of the problems fit the calibration, the other half are the ones that are reported. Intervals are 95 %:
Wilson's of shares, bootstrap over problems of errors. Minutes of one core; only the speeds depend on it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from fastapi.testclient import TestClient

from unmask import LLM
from unmask.bench.environment import machine
from unmask.canvas import Floats
from unmask.decisions import DecisionQuestion, choice
from unmask.decisions.calibration import (
    calibrated,
    calibration_error,
    fit_temperature,
    log_loss,
)
from unmask.demo.example import Example
from unmask.demo.tasks import held_out_set
from unmask.engine.engine import Engine
from unmask.server.app import create_app
from unmask.server.settings import ServerSettings
from unmask.tune.goal import wilson

NUM_OPTIONS, REPEATS, RESAMPLES = 4, 5, 500
Pairs = list[tuple[Floats, int]]


def questions_of(example: Example, rng: random.Random) -> tuple[list[DecisionQuestion], list[int]]:
    """Return the questions of a problem and the indices of their right options."""
    questions, right = [], []
    for line in example.answer.split("\n"):
        mark = "=" if "=" in line else " "
        before, result = line[: line.rindex(mark) + 1], line[line.rindex(mark) + 1 :]
        low, high = 10 ** (len(result) - 1) if len(result) > 1 else 0, 10 ** len(result)
        others = [n for n in range(low, high) if n != int(result) and abs(n - int(result)) <= 12]
        options = [*map(str, rng.sample(others, NUM_OPTIONS - 1)), result]
        rng.shuffle(options)
        questions.append(choice(before, options))
        right.append(options.index(result))
    return questions, right


def interval(right: int, count: int) -> str:
    """Return a share in percent with Wilson's interval."""
    low, high = wilson(right, count, 1.96)
    return f"{100 * right / count:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def spread(groups: Sequence[Pairs], measure: Callable[[Pairs], float]) -> str:
    """Return a measure of all pairs, with its bootstrap interval over groups."""
    rng, values = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(groups), len(groups))
        values.append(measure([pair for at in drawn for pair in groups[at]]))
    low, high = np.quantile(values, [0.025, 0.975])
    whole = measure([pair for group in groups for pair in group])
    return f"{whole:.3f} [{low:.3f}, {high:.3f}]"


def measure_quality(llm: LLM, problems: Sequence[Example]) -> None:
    """Print agreement and calibration."""
    rng, found = random.Random(0), dict[bool, list[Pairs]]({False: [], True: []})
    finals: dict[bool, list[int]] = {False: [], True: []}
    for example in problems:
        questions, right = questions_of(example, rng)
        for independent, groups in found.items():
            decisions = llm.decide(
                example.prompt, questions, layout="cloze", independent=independent
            )
            answers = decisions.answers
            shares = [np.array(answer.probabilities) for answer in answers]
            groups.append(list(zip(shares, right, strict=True)))
            finals[independent].append(int(shares[-1].argmax() == right[-1]))
    half = len(problems) // 2
    print("| | joint | independent |\n|---|---|---|")
    rows: dict[str, list[str]] = {}
    tested = {key: groups[half:] for key, groups in found.items()}
    for independent, groups in tested.items():
        fitted = fit_temperature([pair for group in found[independent][:half] for pair in group])
        pairs = [pair for group in groups for pair in group]
        after = [[(calibrated(p, fitted), y) for p, y in group] for group in groups]
        hits = sum(int(p.argmax()) == y for p, y in pairs)
        last = finals[independent][half:]
        for name, text in {
            "right": interval(hits, len(pairs)),
            "right, final results": interval(sum(last), len(last)),
            "calibration error": spread(groups, calibration_error),
            "fitted temperature": f"{fitted:.2f}",
            "calibration error, calibrated": spread(after, calibration_error),
            "log loss, nats": spread(groups, log_loss),
            "log loss, calibrated": spread(after, log_loss),
        }.items():
            rows.setdefault(name, []).append(text)
    for name, texts in rows.items():
        print(f"| {name} | {' | '.join(texts)} |")
    both = [
        int(one.argmax()) == int(other.argmax())
        for first, second in zip(tested[False], tested[True], strict=True)
        for (one, _), (other, _) in zip(first, second, strict=True)
    ]
    num_questions, num_fitted = len(both), sum(len(group) for group in found[False][:half])
    print(f"\nSame option, joint and independent: {interval(sum(both), num_questions)}.")
    print(f"{num_questions} questions of {len(problems) - half} problems; {num_fitted} fitted.")


def measure_speed(llm: LLM, problems: Sequence[Example]) -> None:
    """Print questions per second of the server, by route."""
    rng = random.Random(1)
    asked = [(example.prompt, *questions_of(example, rng)) for example in problems]
    num_questions = sum(len(questions) for _, questions, _ in asked)
    with TestClient(create_app(llm, Engine(llm), ServerSettings(models=("demo",)))) as client:

        def decide(independent: bool) -> None:
            for content, questions, _ in asked:
                body = {
                    "input": content,
                    "layout": "cloze",
                    "independent": independent,
                    "questions": [
                        {
                            "type": "choice",
                            "instructions": each.instructions,
                            "choices": [{"value": value} for value in each.values],
                        }
                        for each in questions
                    ],
                }
                assert client.post("/v1/decisions", json=body).status_code == 200

        def complete() -> None:
            for content, questions, _ in asked:
                prompt = llm.prompts.chat.render([{"role": "user", "content": content}])
                for each in questions:
                    body = {
                        "prompt": prompt + each.instructions,
                        "add_special_tokens": False,
                        "max_tokens": len(str(each.values[0])),
                        "ignore_eos": True,
                        "structured_outputs": {"choice": list(each.values)},
                    }
                    reply = client.post("/v1/completions", json=body)
                    assert reply.json()["choices"][0]["text"] in each.values

        arms = {
            "/v1/decisions, joint": lambda: decide(False),
            "/v1/decisions, independent": lambda: decide(True),
            "/v1/completions, one by one": complete,
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(REPEATS + 1):  # in turns; the first warms up
            for name, run in arms.items():
                began = time.perf_counter()
                run()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    print("\n| questions per second | median | least | most |\n|---|---:|---:|---:|")
    for name, times in seconds.items():
        rates = [
            num_questions / each for each in (statistics.median(times), max(times), min(times))
        ]
        print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in rates)} |")
    print(f"\n{len(asked)} problems with {num_questions} questions, {REPEATS} times in turns.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--problems", type=int, default=100, help="half of them fit the calibration"
    )
    parser.add_argument("--asked", type=int, default=20, help="problems of the speed; 0: none")
    args = parser.parse_args()
    llm = LLM("demo", dtype="float32", device="cpu")
    problems = held_out_set("word_problem", args.problems, seed=0)
    print(f"{machine(torch.device('cpu'))}\n")
    measure_quality(llm, problems)
    if args.asked:
        measure_speed(llm, problems[: args.asked])


if __name__ == "__main__":
    main()
