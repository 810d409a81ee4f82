"""`unmask eval --num-processes`, and what is said where `accelerate launch` starts one process only."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from unmask.cli import evaluate, launcher
from unmask.cli.main import main

WORDS = ["dataset.name=word_problem", "generation=threshold", "gen_length=32"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch, tmp_path):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def started(monkeypatch):
    """The commands that would be started, in the place of their processes."""
    calls = []

    def start(size, arguments):
        calls.append((size, arguments))
        return 7

    monkeypatch.setattr(launcher, "start", start)
    return calls


@pytest.fixture
def ran(monkeypatch):
    """The runs that would be evaluated here."""
    calls = []
    monkeypatch.setattr(evaluate, "run", lambda runs, as_json: calls.extend(runs))
    return calls


@pytest.mark.parametrize("flag", [["--num-processes", "4"], ["--num_processes=4"]])
def test_processes_are_started_with_the_words_as_typed(started, ran, flag, tmp_path):
    (tmp_path / "a file.yaml").write_text("batch_size: 2\n")
    more = ["--limit", "3", "-m", "--json", "--config", "a file.yaml"]
    assert main(["eval", *WORDS, "output='a b'", *flag, *more]) == 7
    assert ran == []
    ((size, arguments),) = started
    assert size == 4
    assert arguments[:1] == ["eval"]
    assert set(WORDS) <= set(arguments)
    assert "output='a b'" in arguments
    assert "limit=3" in arguments
    at = arguments.index("--config")
    assert arguments[at + 1] == "a file.yaml"
    assert {"--multirun", "--json"} <= set(arguments)
    assert not any("processes" in word for word in arguments)


def test_a_mistake_is_found_before_a_process_is_started(started, capsys):
    assert main(["eval", *WORDS, "generation.treshold=1", "--num-processes", "2"]) == 2
    assert started == []
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "257", "x"])
def test_a_number_of_processes_that_cannot_be_is_refused(started, capsys, count):
    assert main(["eval", *WORDS, "--num-processes", count]) == 2
    assert started == []
    assert "--num-processes" in capsys.readouterr().err


def test_one_process_is_this_one(started, ran):
    assert main(["eval", *WORDS, "--num-processes", "1"]) == 0
    assert (len(started), len(ran)) == (0, 1)


def test_a_process_of_another_launcher_starts_none(started, ran, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", *WORDS, "--num-processes", "2"]) == 0
    assert (len(started), len(ran)) == (0, 1)
    assert main(["eval", *WORDS, "--num-processes", "4"]) == 2
    assert "has started 2 process(es)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "device", "status"), [(2, None, 7), (3, None, 2), (3, "cpu", 7), (3, "cuda", 2)]
)
def test_each_process_needs_a_gpu_unless_the_device_is_the_cpu(
    started, monkeypatch, capsys, count, device, status
):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = [] if device is None else [f"device={device}"]
    assert main(["eval", *WORDS, *words, "--num-processes", str(count)]) == status
    assert ("there are 2" in capsys.readouterr().err) == (status == 2)


@pytest.mark.parametrize(
    ("environment", "noted"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # one was asked for
        ({"MASTER_ADDR": "127.0.0.1"}, False),
        (
            {
                "ACCELERATE_MIXED_PRECISION": "no",
                "MASTER_ADDR": "127.0.0.1",
                "RANK": "0",
                "WORLD_SIZE": "2",
            },
            False,
        ),
    ],
)
def test_a_lone_process_of_accelerate_is_noted(ran, monkeypatch, capsys, environment, noted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", *WORDS]) == 0
    assert len(ran) == 1
    assert ("unmask eval --num-processes N" in capsys.readouterr().err) == noted


@pytest.mark.parametrize(("asked", "noted"), [(4, True), (1, False), (None, False)])
def test_what_is_noted_is_what_accelerate_does(asked, noted, monkeypatch, tmp_path):
    """Its own launcher's environment, on this machine without GPUs."""
    utils = pytest.importorskip("accelerate.utils.launch")
    commands = pytest.importorskip("accelerate.commands.launch")
    parser = commands.launch_command_parser()
    words = ["--cpu", *(["--num_processes", str(asked)] if asked else []), "eval.py"]
    arguments = parser.parse_args(words)
    fields = {"num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    fields |= {"num_cpu_threads_per_process": 1, "use_cpu": True}
    merged = SimpleNamespace(**(vars(arguments) | fields))
    _, environment = utils.prepare_simple_launcher_cmd_env(merged)
    for name in LAUNCHERS:
        if name in environment:
            monkeypatch.setenv(name, environment[name])
    assert launcher.is_alone_under_accelerate() == noted


@pytest.mark.slow
def test_four_processes_share_the_examples(tmp_path, capfd):
    words = [*WORDS, "limit=4", "--num-processes", "4", "--json", "-o", str(tmp_path / "four")]
    assert main(["eval", *words]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    four = json.loads(line)
    assert four["resolved"]["num_processes"] == 4
    assert len(list((tmp_path / "four").glob("samples*.jsonl"))) == 4
    assert main(["eval", *WORDS, "limit=4", "--json", "-o", str(tmp_path / "one")]) == 0
    one = json.loads(capfd.readouterr().out)
    assert (one["right"], one["metrics"]["num_forwards"]) == (
        four["right"],
        four["metrics"]["num_forwards"],
    )
