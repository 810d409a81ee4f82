"""Training by two processes equals training by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

WORDS = ["init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2", "model.d_ff=48",
         "model.vocab_size=300", "batch_size=8", "micro_batch_size=2", "watch.checkpoint_every=2",
         "data.eval_fraction=0.3", "watch.eval_every=2"]  # fmt: skip


def start(num_processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [
        sys.executable,
        *(launcher if num_processes > 1 else []),
        "-m",
        "unmask.train",
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["lora.rank=2"]])
def test_two_processes_equal_one_and_resume(tmp_path, more):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"p {k}", "response": f"r {k}"}) + "\n" for k in range(30))
    )
    words = [f"data={rows}", *WORDS, *more]
    one = start(1, *words, f"output={tmp_path}/one", "steps=4")
    assert one.returncode == 0, one.stderr
    two = start(2, *words, f"output={tmp_path}/two", "steps=4", "parallel=fsdp")
    assert two.returncode == 0, two.stderr
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for a, b in zip(*logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["eval_loss"] == pytest.approx(a["eval_loss"], abs=1e-5)
    import torch
    from safetensors.torch import load_file

    first, second = (
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two")
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-4, rtol=1e-3)


def test_several_processes_need_their_key_and_torchrun(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "response": "r"}\n')
    alone = start(1, f"data={rows}", *WORDS, f"output={tmp_path}/run", "parallel=fsdp")
    assert alone.returncode == 2
    assert "parallel=fsdp needs the processes of torchrun" in alone.stderr
