"""The main jobs of training on one's own data, each as a table.

    python benchmarks/fine_tune_jobs.py [--jobs 1,2,3,4,5] [--scale 1.0] [--folder runs/jobs]

1: a task that the bundled model cannot do, by full fine-tuning, with rows of its old tasks among the new
ones, and by LoRA, and what it forgets. 2: a
network from scratch on a text, with samples. 3: a causal network adapted with and without growing blocks,
beside one from scratch with as many tokens. 4: every family's fixture takes a step of LoRA; the tensors
without an adapter stay as they were. 5: a run that is killed at random instants ends bit for bit as one
that is not. `--scale` multiplies the steps of 1 to 3. Seed 0; intervals are Wilson's, of 95 percent. An
interrupted run goes on. Seconds are those of the processor, since the machine may do other work.
"""

from __future__ import annotations

import argparse
import json
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

import unmask
from unmask.bench.environment import machine
from unmask.demo.tasks import check, held_out_set, training_example
from unmask.models import read_spec
from unmask.train.api import Trained
from unmask.tune.goal import wilson

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "../shared/data/shakespeare/tiny_shakespeare.txt"
conversions = runpy.run_path(str(ROOT / "examples" / "fine_tune.py"))["rows"]
"""Rows of the new task, quantities to be written in a smaller unit, by number and seed."""
OLD_TASKS = ("word_problem", "sudoku")
FAMILIES = ("llada", "dream", "llada_moe", "llada2_moe", "sdar", "fast_dllm_v2")
SMALL = {"d_model": 128, "num_layers": 4, "num_heads": 4, "d_ff": 384, "vocab_size": 1024}


class Plan:
    """Where the runs are, and how long they are."""

    def __init__(self, folder: Path, scale: float, corpus: Path, num_test: int) -> None:
        self.folder, self.scale, self.corpus, self.num_test = folder, scale, corpus, num_test

    def steps(self, count: int) -> int:
        """Return a number of steps at the plan's scale, at least 2."""
        return max(2, round(count * self.scale))


def share(right: int, count: int) -> str:
    """Return a share in percent with its interval."""
    low, high = wilson(right, count, z=1.96)
    return f"{100 * right / count:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def new_task(plan: Plan) -> Iterator[str]:
    """Job 1: accuracy on held-out rows of the new task and on old tasks, before and after."""
    every = conversions(200 + plan.num_test, seed=0)
    test, new = every[200:], every[:200]
    rng = random.Random(1)
    old = [training_example(task, rng) for task in OLD_TASKS for _ in range(50)]
    mixed = [*new, *({"prompt": each.prompt, "response": each.answer} for each in old)]
    yield "| model | steps of 16 rows | seconds | new task | word problems | Sudoku |"
    yield "|---|---:|---:|---|---|---|"

    def line(name: str, model: str | Path, steps: str, seconds: str) -> str:
        llm = unmask.LLM(model)
        prompts = [row["prompt"] for row in test]
        outputs = llm.generate(prompts, "threshold", gen_length=16, block_length=16)
        pairs = zip(test, outputs, strict=True)
        cells = [share(sum(out.text.strip() == row["response"] for row, out in pairs), len(test))]
        for task in OLD_TASKS:
            examples = held_out_set(task, plan.num_test)
            prompts = [each.prompt for each in examples]
            outputs = llm.generate(prompts, "threshold", gen_length=64, block_length=64)
            right = sum(check(each, out.text) for each, out in zip(examples, outputs, strict=True))
            cells.append(share(right, len(examples)))
        return f"| {name} | {steps} | {seconds} | {' | '.join(cells)} |"

    yield line("before", "demo", "", "")
    for name, data, count, settings in (
        ("full", new, 300, {"optim.lr": 3e-4}),
        ("full, 100 rows of the old tasks added", mixed, 500, {"optim.lr": 3e-4}),
        ("LoRA, rank 16", new, 500, {"lora.rank": 16, "optim.lr": 2e-3}),
        ("LoRA over int8", new, 500, {"lora.rank": 16, "lora.base": "int8", "optim.lr": 2e-3}),
    ):
        began, steps = time.process_time(), plan.steps(count)
        done = unmask.train(
            data,
            output=plan.folder / "convert" / name.replace(" ", "-").replace(",", ""),
            steps=steps,
            batch_size=16,
            micro_batch_size=16,
            **settings,
        )
        yield line(name, done.folder, f"{steps}", f"{time.process_time() - began:.0f}")


def scratch(plan: Plan) -> Iterator[str]:
    """Job 2: held-out loss of a new network on a text, and two samples."""
    steps = plan.steps(1000)
    began = time.process_time()
    entries: list[tuple[int, float]] = []
    done = unmask.train(
        plan.corpus,
        output=plan.folder / "scratch",
        init=None,
        model=SMALL,
        steps=steps,
        batch_size=16,
        micro_batch_size=16,
        max_length=128,
        **{"optim.name": "muon", "optim.lr": 3e-3, "data.eval_fraction": 0.0},
        watch={"eval_every": 0},
        report=lambda entry: entries.append((entry.step, entry.loss)),
    )
    seconds = time.process_time() - began
    parts = [entries[:10], entries[-10:]]
    first, last = (sum(loss for _, loss in part) / max(1, len(part)) for part in parts)
    yield "| steps | tokens | seconds | loss of the first ten steps | of the last ten |"
    yield "|---:|---:|---:|---:|---:|"
    yield f"| {steps} | {steps * 16 * 128:,} | {seconds:.0f} | {first:.2f} | {last:.2f} |"
    llm = unmask.LLM(done.folder)
    yield ""
    for seed in (0, 1):
        text = llm.generate(
            "ROMEO:",
            raw=True,
            gen_length=32,
            steps=32,
            temperature=0.7,
            seed=seed,
            stop_at_eos=False,
        )[0].text
        yield f"- `{' '.join(text.split())}`"


def adaptation(plan: Plan) -> Iterator[str]:
    """Job 3: held-out loss of a causal network that is adapted, and of one from scratch."""
    lines = plan.corpus.read_text(encoding="utf-8").split("\n\n")
    rows = [{"text": text} for text in lines if len(text) > 200]
    cut = len(rows) - 40
    data, test = (plan.folder / "causal" / name for name in ("train.jsonl", "test.jsonl"))
    data.parent.mkdir(parents=True, exist_ok=True)
    for path, part in ((data, rows[:cut]), (test, rows[cut:])):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    common = {
        "batch_size": 16,
        "micro_batch_size": 16,
        "max_length": 128,
        "optim.name": "muon",
        "data.eval": str(test),
        "watch.eval_every": 10**6,
    }
    steps = plan.steps(120)

    def run(name: str, **settings: object) -> Trained:
        values = {"optim.lr": 3e-3, **common, **settings}
        return unmask.train(data, output=plan.folder / "causal" / name, **values)

    causal = run("base", init=None, model=SMALL, objective="causal", steps=plan.steps(240))
    first = {"tokenizer": str(causal.folder), "init": None, "model": SMALL}
    begin = {"init": str(causal.folder), "optim.lr": 1e-3, "optim.muon_lr": 3e-3}
    yield f"| {steps} steps of 16 x 128 tokens | held-out loss |"
    yield "|---|---:|"
    for name, settings in (
        ("from scratch", first),
        ("adapted, attention opened at once", begin),
        ("adapted, blocks of 1, 4, 32, then all", {**begin, "adapt.block_schedule": (1, 4, 32, 0)}),
    ):
        done = run(name.replace(" ", "-").replace(",", ""), steps=steps, **settings)
        loss = "" if done.eval_loss is None else f"{done.eval_loss:.3f}"
        yield f"| {name} | {loss} |"


def families(plan: Plan) -> Iterator[str]:
    """Job 4: a step of LoRA on every family's fixture; tensors without an adapter are bit-equal."""
    yield "| family | tensors | with an adapter | others bit-equal | loads again |"
    yield "|---|---:|---:|---|---|"
    for family in FAMILIES:
        fixture = ROOT / "tests/fixtures/parity" / family
        base = plan.folder / "families" / f"{family}-before"
        shutil.copytree(fixture, base, dirs_exist_ok=True)
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        config["mask_token_id"] = most = 900  # some name one that their few rows do not have
        (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
        rng = random.Random(0)
        rows = [
            {"input_ids": [rng.randrange(most) for _ in range(16)], "loss_mask": [0] * 8 + [1] * 8}
            for _ in range(4)
        ]
        done = unmask.train(
            rows,
            output=plan.folder / "families" / family,
            init=str(base),
            steps=1,
            batch_size=4,
            lora={"rank": 2, "targets": ("q",)},
        )
        before, after = (load_file(path / "model.safetensors") for path in (base, done.folder))
        changed = [name for name, value in before.items() if not same(value, after[name])]
        num_layers = read_spec(base).num_layers
        is_equal = before.keys() == after.keys() and len(changed) <= num_layers
        unmask.load_model(done.folder, "float32")
        yield f"| {family} | {len(before)} | {num_layers} | {'yes' if is_equal else 'NO'} | yes |"


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return True for tensors of equal type and bits."""
    return one.dtype == other.dtype and torch.equal(one, other)


def kills(plan: Plan, count: int) -> Iterator[str]:
    """Job 5: runs that are killed once, at random instants, beside one that is not."""
    rows = [{"prompt": f"{a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
    data = plan.folder / "kills" / "rows.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sizes = ("init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2")
    more = ("model.d_ff=48", "model.vocab_size=300", "batch_size=4", "steps=40")
    words = [f"data={data}", *sizes, *more, "watch.checkpoint_every=5"]

    def command(name: str) -> list[str]:
        out = f"output={plan.folder / 'kills' / name}"
        return [sys.executable, "-m", "unmask.train", *words, out]

    def final(name: str) -> bytes:
        return (plan.folder / "kills" / name / "final/model.safetensors").read_bytes()

    began = time.perf_counter()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole_s, rng, equal, inside, tries = time.perf_counter() - began, random.Random(0), 0, 0, 0
    while inside < count and tries < 4 * count:
        name, tries = f"killed-{tries}", tries + 1
        process = subprocess.Popen(
            command(name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.4, 1.0) * whole_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            inside += 1
        subprocess.run(command(name), check=True, capture_output=True)
        equal += final(name) == final("whole")
    yield "| runs | killed before their end | bit-equal at the end |"
    yield "|---:|---:|---:|"
    yield f"| {tries} | {inside} | {equal} |"


def main() -> None:
    """Do the jobs and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/jobs"))
    parser.add_argument("--jobs", default="1,2,3,4,5")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a text file, for jobs 2 and 3")
    parser.add_argument("--test", type=int, default=40, help="held-out rows of each task of job 1")
    parser.add_argument("--kills", type=int, default=20, help="runs of job 5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(options.folder, options.scale, options.corpus, options.test)
    jobs: dict[str, Callable[[], Iterator[str]]] = {
        "1": lambda: new_task(plan),
        "2": lambda: scratch(plan),
        "3": lambda: adaptation(plan),
        "4": lambda: families(plan),
        "5": lambda: kills(plan, options.kills),
    }
    for job in options.jobs.split(","):
        print(f"\nJob {job}\n", flush=True)
        for text in jobs[job]():
            print(text, flush=True)
    where = machine("cpu")
    print(f"\n{where['processor']}, 1 thread, torch {where['torch']}, scale {options.scale:g}")


if __name__ == "__main__":
    main()
