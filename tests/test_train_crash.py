"""A training that is killed, or whose disk is full, goes on from its last checkpoint and ends the same."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time

import pytest

from unmask.errors import ConfigError
from unmask.train import checkpoint, network
from unmask.train.config import compose
from unmask.train.run import FileTrainer

ROWS = [{"prompt": f"{a} {b}", "response": f"{b} {a}"} for a in "abcd" for b in "efgh"]
SMALL = [
    *("init=null", "model.d_model=32", "model.num_layers=2", "model.num_heads=2", "model.d_ff=48"),
    *("model.vocab_size=300", "batch_size=4", "micro_batch_size=2", "watch.checkpoint_every=2"),
]


class KilledError(BaseException):
    """Stands for the end of the process: nothing may catch it."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def words_of(rows, folder, *more):
    return [f"data={rows}", *SMALL, "steps=6", f"output={folder}", *more]


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """The weights at the end of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    list(FileTrainer(compose(words_of(rows, folder))))
    return (folder / "final/model.safetensors").read_bytes()


def last(folder):
    return checkpoint.checkpoints(folder)[-1].name


@pytest.mark.parametrize(
    ("place", "name", "call", "newest"),
    [
        ("the first checkpoint's weights", "save_file", 1, None),
        ("the second checkpoint's weights", "save_file", 3, "step-000002"),
        ("its optimizer state, half written", "save_file", 4, "step-000002"),
        ("its hashes", "digests", 2, "step-000002"),
        ("the final folder", "save_weights", 1, "step-000006"),
    ],
)
def test_a_run_that_dies_while_it_writes_ends_as_one_that_does_not(
    rows, whole, tmp_path, monkeypatch, place, name, call, newest
):
    module = checkpoint if name == "digests" else network
    plain, calls = getattr(module, name), []

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            if name == "save_file":
                arguments[1].write_bytes(b"half")
            raise KilledError
        return plain(*arguments, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        # The clean-up of a process that is alive would hide what a kill leaves behind.
        patch.setattr("unmask.durable.shutil.rmtree", lambda *_, **__: None)
        run = FileTrainer(compose(words_of(rows, folder)))
        with pytest.raises(KilledError):
            list(run)
        run.close()
    assert (last(folder) if checkpoint.checkpoints(folder) else None) == newest
    rest = FileTrainer(compose(words_of(rows, folder)))
    assert rest.step == (0 if newest is None else int(newest[-6:]))
    assert rest.damaged == []
    list(rest)
    assert (folder / "final/model.safetensors").read_bytes() == whole
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on(rows, whole, tmp_path):
    """The system's own limit on file sizes stands for the full disk: every larger write fails."""
    folder = tmp_path / "run"
    run = FileTrainer(compose(words_of(rows, folder)))
    entries = iter(run)
    assert [next(entries).step for _ in range(3)] == [1, 2, 3]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ConfigError, match="step-000004 cannot be written.*make room"):
            next(entries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run.close()
    assert last(folder) == "step-000002"
    assert not list(folder.glob(".step-*"))
    list(FileTrainer(compose(words_of(rows, folder))))
    assert (folder / "final/model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "progress.json").write_text('{"step": 4, "sha'),
    ],
)
def test_the_checkpoint_before_a_truncated_one_is_used(rows, whole, tmp_path, damage):
    folder = tmp_path / "run"
    run = FileTrainer(compose(words_of(rows, folder)))
    for entry in run:
        if entry.step == 5:
            break
    run.close()
    damage(folder / "step-000004")
    rest = FileTrainer(compose(words_of(rows, folder)))
    assert rest.step == 2
    assert "step-000004" in rest.damaged[0]
    list(rest)
    assert (folder / "final/model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_ends_as_one_that_is_not(rows, tmp_path):
    """kill -9 of the command, at 20 random instants after a few steps."""
    steps, kills = 120, 20
    words = [word for word in SMALL if "checkpoint" not in word]
    words += [f"steps={steps}", "watch.checkpoint_every=3"]
    command = [sys.executable, "-m", "unmask.cli.main", "train", f"data={rows}", *words]
    list(FileTrainer(compose([f"data={rows}", *words, f"output={tmp_path}/whole"])))
    rng, killed = random.Random(1), 0
    log = tmp_path / "killed" / "log.jsonl"
    for _ in range(3 * kills + 1):
        process = subprocess.Popen(
            [*command, f"output={tmp_path}/killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        size = log.stat().st_size if log.exists() else 0
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and killed < kills:
            if log.exists() and log.stat().st_size != size:  # it trains: kill it at any instant
                time.sleep(rng.random() * 0.2)
                process.kill()
                killed += process.wait() != 0
                break
            time.sleep(0.01)
        if process.wait(timeout=300) == 0:
            break
    one, other = (tmp_path / name / "final" / "model.safetensors" for name in ("whole", "killed"))
    assert killed > 0
    assert one.read_bytes() == other.read_bytes()
