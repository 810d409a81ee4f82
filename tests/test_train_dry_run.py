"""The dry run beside the real one, at the sizes of the bundled model, each in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest

RUN = """
import json, resource, sys, time
from unmask.train.config import compose
from unmask.train.dry_run import estimate
from unmask.train.run import FileTrainer
began = time.perf_counter()
if sys.argv[1] == "dry":
    found = estimate(compose(sys.argv[2:]))
    print(json.dumps(vars(found)))
else:
    trainer = FileTrainer(compose(sys.argv[2:]))
    began = time.perf_counter()
    count = len(list(trainer))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"steps": count, "peak_bytes": peak, "total_s": time.perf_counter() - began}))
"""
PARTS = (
    "process_bytes",
    "weights_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "activations_bytes",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of very unequal lengths."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [
        " ".join(rng.choices(["one", "two", "three", "four", "five", "six"], k=k))
        for k in range(2, 52)
    ]
    rng.shuffle(texts)
    path.write_text("".join(json.dumps({"prompt": "Say:", "response": t}) + "\n" for t in texts))
    return path


def run(kind, *words):
    command = [sys.executable, "-c", RUN, kind, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def both(rows, folder, *words):
    words = [f"data={rows}", "batch_size=16", "micro_batch_size=8", *words]
    dry = run("dry", *words, f"output={folder}/dry")
    assert not (folder / "dry").exists()
    return dry, run("real", *words, f"output={folder}/real")


@pytest.mark.slow
def test_the_memory_is_that_of_the_real_run(rows, tmp_path):
    dry, real = both(rows, tmp_path, "steps=6")
    assert dry["steps"] == real["steps"] == 6
    assert dry["peak_bytes"] == pytest.approx(real["peak_bytes"], rel=0.25)
    assert sum(dry[name] for name in PARTS) == pytest.approx(dry["peak_bytes"], rel=0.1)
    assert dry["weights_bytes"] == dry["parameters"] * 4
    assert dry["optimizer_bytes"] == pytest.approx(dry["trained"] * 8, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["lora.rank=8"], ["data.eval_fraction=0.2"]])
def test_memory_and_time_are_those_of_the_real_run(rows, tmp_path, more):
    """The time: the machine may be busy with other work in one of the two, so three tries are allowed."""
    ratios = []
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        dry, real = both(rows, folder, "steps=40", "watch.eval_every=10", *more)
        assert dry["peak_bytes"] == pytest.approx(real["peak_bytes"], rel=0.25)
        ratios.append(dry["total_s"] / real["total_s"])
        if 0.75 <= ratios[-1] <= 1.25:
            return
        time.sleep(1)
    raise AssertionError(f"the time of the dry run over that of the real one: {ratios}")
