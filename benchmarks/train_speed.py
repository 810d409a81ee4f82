"""Speed and memory of a training step beside two loops written by hand, at the vocabulary of LLaDA.

    python benchmarks/train_speed.py [--vocab 126464] [--rows 8] [--length 128] [--repeats 5]

One run, same rows, same network (random weights), plain AdamW, one thread unless OMP_NUM_THREADS says
otherwise. Loops, each in a process of its own so that its peak memory is its own:
- ours: `FileTrainer.train_step` on rows of answers of unequal length, `unmask train` as it is;
- bare: the same batches, network and masked-position head in a loop without anything else;
- field: rows padded to the longest of the data, logits of all positions, cross-entropy of the masked ones.
Printed: real (unpadded) tokens a second, median of the repeats, and the highest resident memory above that
before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from unmask.bench.environment import machine
from unmask.models.families import llada
from unmask.objectives import masked_loss
from unmask.train.batches import FileData
from unmask.train.config import ModelConfig, from_values
from unmask.train.run import FileTrainer
from unmask.train.start import SpecialTokens, build, network_spec

KINDS = ("ours", "bare", "field")
SIZES = ModelConfig(d_model=128, num_layers=4, num_heads=4, d_ff=384)


def checkpoint(folder: Path, vocab: int) -> Path:
    """Write a random model of a large vocabulary without a tokenizer."""
    from unmask.models.weights import save_weights

    spec = network_spec(SIZES, SpecialTokens(vocab - 2, vocab - 3, vocab - 4, ""), shift=False)
    spec = replace(spec, turn_end=None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llada.config_from_spec(spec)))
    save_weights(build(spec, 0, 0.02), folder / "model.safetensors", llada.NAMES, torch.float32)
    return folder


def rows_file(path: Path, vocab: int, length: int) -> Path:
    """Write answers of lengths from an eighth of `length` to all of it, after prompts of eight tokens."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for k in range(64):
        size = length // 8 + (length - length // 8) * k // 63
        ids = torch.randint(5, vocab - 10, (size,), generator=generator).tolist()
        lines.append(json.dumps({"input_ids": ids, "loss_mask": [0] * 8 + [1] * (size - 8)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def trainer_of(folder: Path, rows: int) -> FileTrainer:
    """Return the trainer of the rows and the checkpoint in a folder."""
    values = {
        "init": str(folder / "model"),
        "data.path": [str(folder / "rows.jsonl")],
        "output": str(folder / f"run-{os.getpid()}"),
        "batch_size": rows,
        "micro_batch_size": rows,
        "steps": 1000,
        "sft.tail": 0,
        "sft.pad_loss": False,
        "data.packing": "none",
    }
    return FileTrainer(from_values(values))


def step_of(kind: str, trainer: FileTrainer) -> Callable[[], None]:
    """Return a function that takes the next step of a loop."""
    if kind == "ours":

        def ours() -> None:
            trainer.train_step()

        return ours
    model = trainer.network.model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01)
    steps = iter(range(10**9))

    def bare() -> None:
        for batch in trainer.data.batches(next(steps)):
            (masked_loss(model, batch) / len(batch.tasks)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def field() -> None:
        for batch in trainer.data.batches(next(steps)):
            longest = int(trainer.data.units.sizes.max())
            more = longest - batch.clean_BT.shape[1]
            noisy, clean, weights = (
                F.pad(each, (0, more), value=value)
                for each, value in (
                    (batch.noisy.ids_BT, model.spec.eos_id),
                    (batch.clean_BT, model.spec.eos_id),
                    (batch.noisy.weights_BT, 0.0),
                )
            )
            logits = model(noisy)
            losses = F.cross_entropy(
                logits.flatten(0, 1).float(), clean.flatten(), reduction="none"
            ).view(clean.shape)
            ((losses * weights).sum() / len(clean)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return bare if kind == "bare" else field


def measure(kind: str, folder: Path, rows: int, repeats: int) -> dict[str, float]:
    """Return tokens a second and the growth of the peak memory in bytes."""
    trainer = trainer_of(folder, rows)
    data: FileData = trainer.data
    step = step_of(kind, trainer)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step()
    rates = []
    for k in range(1, repeats + 1):
        units = [data.units.unit(k * rows + i) for i in range(rows)]
        tokens = sum(len(unit.ids) for unit in units)
        began = time.perf_counter()
        step()
        rates.append(tokens / (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trainer.close()
    return {
        "tokens_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "memory": peak - before,
    }


def main() -> None:
    """Measure the three loops in processes of their own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=126_464)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind is not None:
        print(json.dumps(measure(options.kind, options.folder, options.rows, options.repeats)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint(folder / "model", options.vocab)
        rows_file(folder / "rows.jsonl", options.vocab, options.length)
        for kind in KINDS:
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"vocabulary {options.vocab}, {options.rows} rows of up to {options.length}, {machine('cpu')}\n"
    )
    print(
        "| loop | tokens/s (least to most) | memory of the steps | speed, ours over it | memory |"
    )
    print("|---|---|---:|---:|---:|")
    for kind, each in found.items():
        speed = found["ours"]["tokens_per_s"] / each["tokens_per_s"]
        memory = found["ours"]["memory"] / each["memory"]
        print(
            f"| {kind} | {each['tokens_per_s']:.0f} ({each['least']:.0f} to {each['most']:.0f}) | "
            f"{each['memory'] / 2**20:.0f} MiB | {speed:.2f} | {memory:.2f} |"
        )


if __name__ == "__main__":
    main()
