"""d2Cache's evaluation commands: run by `unmask eval`, and verbatim through `accelerate launch`."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import COMMANDS, words_of

from unmask.cli.main import main
from unmask.config import Sources, compose
from unmask.config.settings import settings_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder of models in which llada-inst is the bundled model, and one of data with a row or two."""
    from unmask.models import BUNDLED

    folder = tmp_path_factory.mktemp("some place")
    models, data = folder / "models", folder / "data"
    models.mkdir()
    (models / "llada-inst").symlink_to(BUNDLED["demo"], target_is_directory=True)
    row = {"question": "Tom has 3 pens. He buys 4 more. How many?", "answer": "3 + 4 = 7.\n#### 7"}
    (data / "gsm8k").mkdir(parents=True)
    for name in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for _ in range(6))
        (data / "gsm8k" / f"{name}.jsonl").write_text(text)
    (data / "humaneval").mkdir()
    task = {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n    ",
        "entry_point": "one",
        "canonical_solution": "return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(task) + "\n")
    return {
        "UNMASK_MODELS": str(models),
        "UNMASK_DATA": str(data),
        "HF_ALLOW_CODE_EVAL": "1",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_published_command_is_a_run_of_its_task(command, tmp_path):
    (tmp_path / "llada-inst").mkdir()
    composed = compose(
        words_of(command),
        Sources(models_folder=tmp_path, data_folder=tmp_path, may_run_code=True),
    )
    task = composed["dataset.name"]
    assert composed.values["generation.gen_length"].value == (256 if task == "gsm8k" else 512)
    settings = settings_of(composed)
    assert settings.task == task
    assert settings.model == str(tmp_path / "llada-inst")
    assert settings.data == str(tmp_path)
    assert settings.chat is True
    assert settings.gen_length == (None if settings.method.decoder_name == "daedal" else 256)
    assert settings.batch_size == (8 if settings.method.decoder_name == "daedal" else 1)


LENGTHS = ("generation.gen_length=", "generation.steps=")
"""Words that the fast test makes smaller; the slow one runs the commands as they are."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_as_unmask_eval(command, places, tmp_path, monkeypatch, capsys):
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    length = "128" if "generation=wino" in command else "64"
    words = [word for word in words_of(command) if not word.startswith(LENGTHS)]
    if "generation=daedal" in words:
        words.append("generation.max_gen_length=128")
    else:
        words.append(f"generation.gen_length={length}")
    status = main(["eval", "--json", *words, "limit=1", "dataset.n_shot=0"])
    assert status == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["metrics"]["num_answers"] == 1
    assert result["metrics"]["num_forwards"] >= 1
    assert list(tmp_path.glob("runs/eval/*/results.json"))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_verbatim(command, places, tmp_path):
    """As printed in the document, the model's context aside: the bundled one holds no five examples."""
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).parent / "accelerate")
    words += ["limit=2", "dataset.n_shot=0", f"output={tmp_path / 'run'}"]
    environment = os.environ | places | {"PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["metrics"]["num_answers"] in (1, 2)
    assert "accuracy" in done.stdout
