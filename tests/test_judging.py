"""Programs without leave to run them: generated, stored, and judged later without the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import unmask
from unmask.cli.main import main
from unmask.errors import ConfigError
from unmask.evals import judging
from unmask.evals.judging import judge
from unmask.evals.results import Results, read_runs, report
from unmask.evals.run import evaluate
from unmask.evals.sandbox.wall import find_wall
from unmask.evals.settings import EvalSettings

DATA = Path(__file__).parent / "fixtures" / "evals"
SMALL = {"gen_length": 8, "limit": 2, "decoder": "threshold", "knobs": {"block_length": 8}}
CODE = ("humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct")
needs_wall = pytest.mark.skipif(find_wall() is None, reason="no wall of the kernel here")


def settings_for(task: str, folder: Path, **changes: object) -> EvalSettings:
    shots = {"num_fewshot": 0} if task.startswith("mbpp") else {}
    values = {"task": task, "data": str(DATA), "output": str(folder), **SMALL, **shots, **changes}
    return EvalSettings.from_dict(values)


@pytest.fixture(scope="module")
def llm() -> unmask.LLM:
    return unmask.LLM("demo", device="cpu")


@pytest.fixture(scope="module")
def stored(llm, tmp_path_factory) -> Path:
    """A run of HumanEval that is not judged."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    evaluate(settings_for("humaneval_instruct", folder), llm=llm)
    return folder


@pytest.fixture
def folder(stored, tmp_path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "a run"))


def never(*arguments: object, **keywords: object) -> None:
    raise AssertionError("code would have run")


@pytest.mark.parametrize("task", CODE)
def test_programs_are_generated_and_not_run(llm, task, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.evals.tasks.judges.judge_answer", never)
    results = evaluate(settings_for(task, tmp_path), llm=llm)
    assert not results.is_judged
    assert (results.right, results.scores) == ((), {})
    assert results.docs == tuple(range(len(results.docs)))
    assert results.metrics["num_answers"] == len(results.docs)
    assert results.metrics["num_forwards"] > 0
    assert "sandbox" not in results.resolved
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(results.docs)
    assert not (tmp_path / "scores.jsonl").exists()
    assert "not judged" in (tmp_path / "results.md").read_text()
    assert Results.read(tmp_path) == results


@needs_wall
def test_a_later_judge_finds_what_the_run_with_leave_finds(llm, folder, tmp_path):
    """Of answers that are right and wrong: the stored text of one is replaced by the solution."""
    path = folder / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"] = "    return n + n\n"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with_leave = Path(shutil.copytree(folder, tmp_path / "with leave"))
    before = Results.read(folder)
    judged = judge(folder, may_run_code=True)
    told = settings_for("humaneval_instruct", with_leave, confirm_run_unsafe_code=True)
    at_once = evaluate(told, llm=llm)
    assert (judged.right, judged.scores, judged.docs) == (
        at_once.right,
        at_once.scores,
        at_once.docs,
    )
    assert judged.is_judged
    assert judged.resolved["sandbox"] in ("bubblewrap", "unshare")
    kept = {key: value for key, value in judged.metrics.items() if "accuracy" not in key}
    assert kept == before.metrics
    assert Results.read(folder) == judged
    assert len((folder / "scores.jsonl").read_text().splitlines()) == len(judged.docs)
    assert judge(folder, may_run_code=True).right == judged.right


def test_a_judge_needs_leave_and_the_error_names_both_ways(folder):
    with pytest.raises(ConfigError, match=r"confirm_run_unsafe_code=true, or HF_ALLOW_CODE_EVAL=1"):
        judge(folder, may_run_code=False)


def test_a_run_that_was_judged_when_it_ran_is_refused(llm, tmp_path):
    evaluate(
        EvalSettings.from_dict({"task": "word_problem", "output": str(tmp_path), **SMALL}), llm=llm
    )
    with pytest.raises(ConfigError, match="word_problem runs no code"):
        judge(tmp_path, may_run_code=True)


@pytest.mark.parametrize("damage", ["documents", "answer"])
def test_other_documents_and_missing_answers_are_refused(folder, monkeypatch, damage):
    monkeypatch.setattr("unmask.evals.tasks.judges.judge_answer", never)
    monkeypatch.setattr(judging, "sandbox_name", lambda: "unshare")
    if damage == "documents":
        monkeypatch.setattr(judging, "digest_of", lambda part: "of others")
    else:
        path = folder / "samples.jsonl"
        path.write_text(path.read_text().splitlines(keepends=True)[1])
    with pytest.raises(ConfigError, match="dataset.path=FOLDER|no answer to 1 of its documents"):
        judge(folder, may_run_code=True)
    assert not Results.read(folder).is_judged


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        judge(tmp_path, may_run_code=True)


def test_a_table_says_not_judged(stored, tmp_path):
    text = report(read_runs([stored]))
    assert "|not judged|" in text
    assert "AUP" not in text


def test_the_command_ends_in_a_result_and_says_how_to_judge(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["dataset.name=humaneval_instruct", f"dataset.path={DATA}", "generation=daedal"]
    words += ["generation.initial_gen_length=8", "generation.max_gen_length=16", "limit=1"]
    words += ["batch_size=8", "output='a run'"]
    assert main(["eval", *words]) == 0
    found = capsys.readouterr()
    assert "| not judged |" in found.out
    assert (
        "unmask eval --judge 'a run' confirm_run_unsafe_code=true (or set HF_ALLOW_CODE_EVAL=1)"
        in found.err
    )
    assert main(["eval", "--judge", "a run"]) == 2
    assert "HF_ALLOW_CODE_EVAL=1" in capsys.readouterr().err
    if find_wall() is None:
        return
    assert main(["eval", "--judge", "a run", "confirm_run_unsafe_code=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == 0
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert main(["eval", "--judge", "a run"]) == 0
    assert "0.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ["generation=klass"],
        ["model=demo"],
        ["--limit", "3"],
        ["--num-processes", "2"],
        ["-m"],
        ["--cfg", "job"],
    ],
)
def test_nothing_else_stands_beside_judge(more, capsys):
    assert main(["eval", "--judge", "run", "confirm_run_unsafe_code=true", *more]) == 2
    assert "--judge" in capsys.readouterr().err


def test_tuning_on_programs_needs_leave(capsys, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    words = ["dataset.name=humaneval", f"dataset.path={DATA}", "--decoder", "threshold"]
    assert main(["tune", *words]) == 2
    assert "confirm_run_unsafe_code=true, or HF_ALLOW_CODE_EVAL=1" in capsys.readouterr().err
