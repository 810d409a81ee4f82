"""`cli.launcher`: one command as several processes, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from unmask.cli import launcher

ASK = "import os; rank = os.environ['RANK']\n"


def command(code: str) -> list[str]:
    return [sys.executable, "-c", ASK + code]


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_every_rank_knows_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    code = "print(rank, os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'], flush=True)"
    assert launcher.run(command(code), 2) == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("0 0 2\n", "1 1 2\n"), "only rank 0 writes to standard output"


def test_only_the_first_rank_reads_standard_input() -> None:
    code = "import sys; print(rank, repr(sys.stdin.read()), flush=True)"
    started = "import sys; from unmask.cli import launcher; sys.exit(launcher.run(sys.argv[1:], 2))"
    done = subprocess.run(
        [sys.executable, "-c", started, *command(code)],
        input="hello",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("0 'hello'\n", "1 ''\n")


def test_the_first_rank_gives_the_status_and_ends_the_others() -> None:
    code = "import sys, time\nif rank == '0': sys.exit(7)\ntime.sleep(600)"
    began = time.monotonic()
    assert launcher.run(command(code), 3) == 7
    assert time.monotonic() - began < 15


def test_another_rank_that_fails_ends_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "FAILED_GRACE_S", 0.5)
    code = "import sys, time\nif rank == '1': sys.exit(3)\ntime.sleep(600)"
    began = time.monotonic()
    assert launcher.run(command(code), 2) == launcher.FAILED_STATUS
    assert time.monotonic() - began < 20


def test_a_rank_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 0.5)
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if rank == '0': time.sleep(0.5); sys.exit(7)\ntime.sleep(600)"
    )
    assert launcher.run(command(code), 2) == 7


def test_sigterm_goes_to_the_first_rank_which_ends_as_it_likes() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5) if rank == '0' else None)\n"
        "if rank == '0': print('ready', flush=True)\n"
        "time.sleep(20 if rank == '0' else 1)"
    )
    started = "import sys; from unmask.cli import launcher; sys.exit(launcher.run(sys.argv[1:], 2))"
    with subprocess.Popen(
        [sys.executable, "-c", started, *command(code)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 5


def test_a_rank_starts_no_ranks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launcher.is_started()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launcher.is_started()
    assert launcher.is_follower()


@pytest.mark.slow
def test_generate_over_two_processes_prints_what_one_prints() -> None:
    words = [
        "-m",
        "unmask.cli.main",
        "generate",
        "Anna has 7 eggs.",
        "--gen-length",
        "16",
        "--json",
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = []
    for more in ([], ["--tensor-parallel-size", "2", "--device", "cpu"]):
        done = subprocess.run(
            [sys.executable, *words, *more], capture_output=True, text=True, timeout=300, env=env
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.partition('"seconds"')[0])
    assert said[0] == said[1] != ""
