"""`unmask eval` and `unmask config`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unmask.cli.main import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(words)`: exit status, standard output, standard error, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNMASK_MODELS", "UNMASK_DATA", "HF_ALLOW_CODE_EVAL", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def call(*words):
        status = main(list(words))
        found = capsys.readouterr()
        return status, found.out, found.err

    return call


def test_config_show_prints_each_value_and_its_layer(run):
    status, out, err = run("config", "show", "generation.threshold=0.8", "generation.steps=9")
    assert status == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}
    assert rows["generation.threshold"] == ["0.8", "command line"]
    assert rows["generation.block_length"] == ["32", "schema default"], "in force"
    assert rows["model.path"] == ["demo", "model preset demo"]
    assert "decoder vanilla with threshold is threshold" in err


def test_config_show_as_json_says_the_same(run):
    _, out, _ = run("config", "show", "--json", "cache=dllm", "cache.rou=0.5")
    found = json.loads(out)
    assert found["cache"] == "dllm"
    assert found["keys"]["cache.rou"] == {"value": 0.5, "layer": "command line"}
    assert found["keys"]["cache.kp"] == {"value": 50, "layer": "cache preset dllm"}


def test_cfg_job_prints_what_config_takes_again(run, tmp_path):
    words = ["dataset.name=word_problem", "generation=vanilla", "generation.factor=2", "cache=dual"]
    _, out, _ = run("eval", "--cfg", "job", *words)
    assert yaml.safe_load(out)["generation"] == {
        "strategy": "factor",
        "factor": 2,
        "block_length": 32,
    }
    (tmp_path / "job.yaml").write_text(out)
    _, again, _ = run("eval", "--cfg", "job", "--config", "job.yaml")
    assert yaml.safe_load(again) == yaml.safe_load(out)


def test_cfg_job_keeps_a_knob_that_selects_another_cache(run):
    keys = ["cache=prefix", "cache.use_dual=true"]
    _, out, _ = run("eval", "--cfg", "job", "dataset.name=word_problem", *keys)
    assert yaml.safe_load(out)["cache"] == {"name": "prefix", "use_dual": True}
    _, out, _ = run("config", "show", *keys)
    assert "cache.use_dual\ttrue\tcommand line" in out.splitlines()


def test_flags_are_short_for_keys(run):
    flags = ["--model", "demo", "--task", "sudoku", "--decoder", "klass", "--cache", "dual"]
    flags += ["--gen-length", "32", "--limit", "2", "--batch-size", "2", "--seed", "3", "-o", "a b"]
    _, out, _ = run("eval", "--cfg", "job", *flags, "--dtype", "float32", "--device", "cpu")
    found = yaml.safe_load(out)
    assert found["generation"] == {"strategy": "klass", "gen_length": 32, "block_length": 32}
    assert (found["dataset"]["name"], found["limit"], found["batch_size"]) == ("sudoku", 2, 2)
    assert (found["seed"], found["output"], found["device"]) == (3, "a b", "cpu")
    status, _, err = run("eval", "--limit", "3", "limit=4")
    assert (status, "contradict" in err) == (2, True)


def test_eval_answers_measures_and_says_where(run):
    words = ["dataset.name=word_problem", "limit=2", "generation=threshold", "batch_size=2"]
    status, out, err = run("eval", *words, "output=here")
    assert status == 0, err
    assert "word_problem: threshold" in out
    assert "100.0 ± 0.0 %" in out
    assert "results: here" in out
    assert json.loads(Path("here/results.json").read_text())["metrics"]["accuracy"] == 1


def test_a_sweep_runs_every_combination_in_a_folder_of_its_own(run):
    words = ["dataset.name=word_problem", "limit=1", "generation=threshold,factor", "output=all"]
    status, out, err = run("eval", "-m", "--json", *words)
    assert status == 0, err
    methods = [json.loads(line)["method"] for line in out.splitlines()]
    assert methods == ["threshold", "factor"]
    assert len(list(Path("all").glob("*/results.json"))) == 2


def test_a_mistake_in_a_later_combination_is_found_before_the_first_runs(run):
    words = ["dataset.name=word_problem", "generation=threshold,factro", "limit=1"]
    status, out, err = run("eval", "-m", *words)
    assert (status, out) == (2, "")
    assert "did you mean 'factor'" in err
    assert not Path("runs").exists()


def test_a_variable_that_names_no_folder_is_refused(run, monkeypatch):
    monkeypatch.setenv("UNMASK_DATA", "/nowhere/at/all")
    status, _, err = run("eval", "dataset.name=word_problem")
    assert status == 2
    assert "UNMASK_DATA='/nowhere/at/all' is not a folder" in err


@pytest.mark.parametrize("script", ["eval.py", "train.py"])
def test_the_scripts_of_the_documents_are_the_commands(script):
    if not (ROOT / script).exists():
        pytest.skip("the source distribution has no scripts")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "nonsense=1"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert "unmask: error: " in done.stderr
    assert "nonsense" in done.stderr or "recipe" in done.stderr
