"""Every program and notebook of examples/ runs; notebooks hold the outputs that they yield."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
if not EXAMPLES.exists():
    pytest.skip("the source distribution has no examples", allow_module_level=True)

PROGRAMS = {
    "generate": "answer 17",
    "infill": "sat on the mat.",
    "pictures": "sudoku.gif",
    "stream": "0 positions are open",
    "concurrent": "#### 7 (",
    "own_decoder": "1243",
    "likelihood": "nats",
    "evaluate": "word_problem",
}
"""Each program, and a part of what it prints; `fine_tune` trains and is run by test_train_more.py."""


def test_every_program_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PROGRAMS, "fine_tune"}


LONG = ("evaluate",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in PROGRAMS]
)
def test_a_program_prints_what_it_says(name, tmp_path, monkeypatch, capsys):
    if name == "evaluate":
        pytest.importorskip("lm_eval")
    if name == "pictures":
        pytest.importorskip("matplotlib")
    folder = [str(tmp_path)] if name in ("pictures", "evaluate") else []
    monkeypatch.setattr(sys, "argv", [name, *folder])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert PROGRAMS[name] in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_its_cells(path):
    spec = importlib.util.spec_from_file_location(
        "run_notebooks", ROOT / "scripts/run_notebooks.py"
    )
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    for kept, made in zip(notebook["cells"], runner.executed(notebook)["cells"], strict=True):
        if kept["cell_type"] == "code":
            assert texts(kept) == texts(made), "run: python scripts/run_notebooks.py"


def texts(cell) -> list:
    return [out.get("text") or out["data"]["text/plain"] for out in cell["outputs"]]
